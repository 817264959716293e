"""The files of the live page: sent with the headers that guard them; the libraries in it as published."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import subprocess
import sys
from importlib.resources import files

import pytest

from tests.service_client import client_of, make_service

STATIC = files("tbc.service") / "static"
VENDOR = STATIC / "vendor"
MANIFEST = json.loads((VENDOR / "manifest.json").read_text(encoding="utf-8"))


def get(path, method="GET", service=None, **headers):
    async def within():
        async with client_of(service or make_service()) as client:
            return await client.request(method, path, headers=headers)

    return asyncio.run(within())


def names(folder, suffixes, at=""):
    for each in folder.iterdir():
        if each.is_dir():
            yield from names(each, suffixes, f"{at}{each.name}/")
        elif each.name.endswith(suffixes):
            yield f"{at}{each.name}"


SCRIPTS = sorted(names(STATIC, (".js", ".html", ".css", ".svg")))


def test_the_page_is_served_with_a_policy_that_lets_nothing_foreign_in():
    page = get("/")
    assert page.status_code == 200 and page.headers["content-type"] == "text/html; charset=utf-8"
    policy = dict(part.split(" ", 1) for part in page.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert "unsafe" not in page.headers["content-security-policy"]
    assert page.headers["x-content-type-options"] == "nosniff"
    assert page.headers["referrer-policy"] == "no-referrer"


def test_everything_that_the_page_names_is_served_with_its_kind():
    html = get("/").text
    named = re.findall(r'(?:src|href)="(/[^"]+)"', html)
    assert len(named) >= 6
    kinds = {"js": "text/javascript; charset=utf-8", "css": "text/css; charset=utf-8", "svg": "image/svg+xml"}
    for path in named:
        answer = get(path)
        assert (answer.status_code, answer.headers["content-type"]) == (200, kinds[path.rpartition(".")[2]])
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_every_module_that_is_imported_is_there():
    for name in SCRIPTS:
        for other in re.findall(r'from "\./([\w.]+)"', (STATIC / name).read_text(encoding="utf-8")):
            assert get(f"/static/{other}").status_code == 200, (name, other)


def test_a_file_that_is_known_is_not_sent_again():
    first = get("/static/main.js")
    again = get("/static/main.js", **{"if-none-match": f'"other", W/{first.headers["etag"]}'})
    assert (
        again.status_code == 304 and again.content == b"" and again.headers["etag"] == first.headers["etag"]
    )
    assert get("/static/main.js", **{"if-none-match": '"other"'}).status_code == 200
    assert first.headers["cache-control"] == "no-cache"


def test_only_the_files_are_served_and_only_read():
    head = get("/", "HEAD")
    assert head.status_code == 200 and head.content == b"" and int(head.headers["content-length"]) > 1_000
    refused = get("/", "POST")
    assert refused.status_code == 405 and refused.headers["allow"] == "GET, HEAD"
    for path in (
        "/static/",
        "/static/nothing.js",
        "/static/..%2fapp.py",
        "/static/%2e%2e/app.py",
        "/static//etc/passwd",
    ):
        assert get(path).status_code == 404, path


def test_a_page_of_another_name_does_not_reach_it():
    here = make_service(here_only=True)
    assert get("/", service=here).status_code == 200
    refused = get("/", service=here, host="evil.example")
    assert (refused.status_code, refused.json()["error"]["code"]) == (421, "wrong_host")
    assert get("/static/main.js", service=here, host="evil.example").status_code == 421
    assert get("/", service=here, origin="http://evil.example").status_code == 403


def test_a_process_without_books_has_no_page():
    assert get("/", service=make_service(role="policy")).status_code == 404
    assert get("/", service=make_service(role="executor")).status_code == 200


@pytest.mark.parametrize("package", MANIFEST["packages"], ids=lambda package: package["name"])
def test_a_library_is_as_it_was_published(package):
    assert package["licence"] in {"ISC", "BSD-3-Clause"}
    assert package["version"] in package["package"]
    assert any(name.endswith(".LICENSE") for name in package["files"])
    for name, file in package["files"].items():
        assert hashlib.sha256((VENDOR / name).read_bytes()).hexdigest() == file["sha256"], name


def test_nothing_is_vendored_that_the_manifest_does_not_name():
    known = {name for package in MANIFEST["packages"] for name in package["files"]} | {"manifest.json"}
    assert {each.name for each in VENDOR.iterdir()} == known


FORBIDDEN = (
    r"\beval\(",
    r"new Function",
    r"\.innerHTML",
    r"outerHTML",
    r"insertAdjacentHTML",
    r"document\.write",
)


@pytest.mark.parametrize("name", SCRIPTS)
def test_nothing_is_made_of_text_and_nothing_foreign_is_named(name):
    text = (STATIC / name).read_text(encoding="utf-8")
    assert [each for each in FORBIDDEN if re.search(each, text)] == []
    code = re.sub(r"\A// https://\S+", "", text)  # where a library says what it is
    foreign = set(re.findall(r"(?:https?:)?//[a-z][\w.-]*\.\w+", code))
    assert foreign - {"http://www.w3.org"} == set()  # the name of a language, which nobody loads
    assert not re.search(r"\son\w+=|\sstyle=|javascript:", text) or not name.endswith(".html")


def test_no_script_and_no_style_stands_in_the_page_itself():
    html = (STATIC / "index.html").read_text(encoding="utf-8")
    assert re.findall(r"<script(?![^>]*\ssrc=)", html) == [] and "<style" not in html


def test_the_search_for_markup_finds_some():
    assert all(
        re.search(each, "eval(a) new Function b.innerHTML outerHTML insertAdjacentHTML document.write")
        for each in FORBIDDEN
    )


@pytest.mark.parametrize("package", ["cyclopts", "prometheus_client", "starlette", "uvicorn", "httptools"])
def test_without_the_extra_serve_says_what_to_install(package):
    code = f"import sys; sys.modules[{package!r}] = None; from tbc.__main__ import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "serve", "--port", "0"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 1
    said = f'The tbc command needs {package}. Install it with:  pip install "tbc[cli,serve]"\n'
    assert done.stderr == said


def test_what_an_import_lacked_is_found_however_deep_it_is():
    from tbc.__main__ import _missing

    try:
        try:
            raise ModuleNotFoundError("x", name="starlette.routing")
        except ImportError as error:
            raise ImportError("Cannot import module") from error
    except ImportError as error:
        assert _missing(error) == "starlette"
    assert _missing(ImportError("x", name="mine")) is None
