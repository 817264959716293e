# The service as an image, for compose.yaml or alone:
#   docker build -t tbc .
#   docker run --rm -v tbc-data:/data tbc token create --tokens /data/tokens.json --pool default --scopes read,spend,admin
#   docker run -p 127.0.0.1:8787:8787 -v tbc-data:/data tbc     # other machines reach it by a proxy with TLS
FROM python:3.13-slim AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY tbc ./tbc
RUN pip wheel --no-cache-dir --wheel-dir /wheels ".[cli,config,postgres,prices,serve,sqlite]"

FROM python:3.13-slim
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
COPY --from=build /wheels /wheels
RUN pip install --no-cache-dir --no-index --find-links /wheels "tbc[cli,config,postgres,prices,serve,sqlite]" \
    && rm -rf /wheels \
    && useradd --uid 10001 --no-create-home --home-dir /data --shell /usr/sbin/nologin tbc \
    && install -d -o tbc -g tbc -m 0700 /data
USER tbc
WORKDIR /data
VOLUME /data
EXPOSE 8787
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s CMD ["python", "-c", "import urllib.request as web; web.urlopen('http://127.0.0.1:8787/health', timeout=2).close()"]
ENTRYPOINT ["tbc"]
CMD ["serve", "--host", "0.0.0.0", "--behind-proxy", "--port", "8787", "--store", "sqlite:////data/books.db", "--tokens", "/data/tokens.json"]
