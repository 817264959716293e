// A table of which one page is drawn: the elements do not grow with the rows, and are used again.

import { fill, make, put, say } from "./dom.js";

export class PagedTable {
  /**
   * `columns`: {label, kind, show(cell, row)}; `show` may return a text, or fill the cell itself.
   */
  constructor(root, { label, columns, size = 25, empty }) {
    this.columns = columns;
    this.size = size;
    this.page = 0;
    this.rows = [];
    this.lines = [];
    const heads = columns.map((each) => make("th", { scope: "col", role: "columnheader", class: each.kind ?? null }, each.label));
    this.body = make("tbody", { role: "rowgroup" });
    this.table = make(
      "table", { role: "table", "aria-label": label },
      make("thead", { role: "rowgroup" }, make("tr", { role: "row" }, ...heads)), this.body,
    );
    this.nothing = make("p", { class: "empty" }, empty);
    this.before = make("button", { type: "button" }, "Previous");
    this.after = make("button", { type: "button" }, "Next");
    this.where = make("span", { class: "where" });
    this.pager = make("div", { class: "pager", role: "group", "aria-label": `Pages: ${label}` }, this.before, this.where, this.after);
    this.before.addEventListener("click", () => this.turn(-1));
    this.after.addEventListener("click", () => this.turn(1));
    fill(root, this.table, this.nothing, this.pager);
  }

  turn(by) {
    this.page += by;
    this.show(this.rows);
  }

  first() {
    this.page = 0;
  }

  show(rows) {
    this.rows = rows;
    const pages = Math.max(1, Math.ceil(rows.length / this.size));
    this.page = Math.min(Math.max(0, this.page), pages - 1);
    const start = this.page * this.size;
    const shown = rows.slice(start, start + this.size);
    while (this.lines.length > shown.length) this.lines.pop().remove();
    while (this.lines.length < shown.length) {
      const cells = this.columns.map((each) => {
        return make("td", { role: "cell", class: each.kind ?? null, "data-label": each.label });
      });
      const line = make("tr", { role: "row" }, ...cells);
      this.lines.push(line);
      this.body.append(line);
    }
    shown.forEach((row, place) => this.columns.forEach((column, at) => {
      const cell = this.lines[place].cells[at];
      const text = column.show(cell, row);
      if (text !== undefined) say(cell, text);
    }));
    this.table.hidden = shown.length === 0;
    this.nothing.hidden = shown.length > 0;
    this.pager.hidden = pages === 1;
    const last = start + shown.length;
    say(this.where, `${(start + 1).toLocaleString("en")} to ${last.toLocaleString("en")} of ${rows.length.toLocaleString("en")}`);
    put(this.before, "aria-disabled", this.page === 0);
    put(this.after, "aria-disabled", this.page === pages - 1);
  }
}
