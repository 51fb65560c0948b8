// A table with a search field, sortable columns, pages, and a card under every row that is opened.

const PAGE = 50;

// Rows that the page was written with, and what is searched of each.
class Written {
  constructor(rows, texts) {
    this.rows = rows;
    this.texts = texts;
    this.size = rows.length;
  }

  matching(parts) {
    return Uint8Array.from(this.texts, text => parts.every(part => text.includes(part)));
  }

  keys(column) {
    const cells = this.rows.map(row => row.cells[column]);
    if (cells.some(cell => cell.classList.contains("n"))) {
      return cells.map(cell => (cell.dataset.v ?? "") === "" ? -Infinity : +cell.dataset.v);
    }
    const texts = cells.map(cell => cell.textContent);
    const ranks = new Map([...new Set(texts)].sort((a, b) => b.localeCompare(a)).map((t, i) => [t, i]));
    return texts.map(text => ranks.get(text));
  }

  row(at) {
    return this.rows[at];
  }

  id(at) {
    return this.rows[at].dataset.id;
  }
}

class Listing {
  constructor(box, source, cardOf) {
    this.box = box;
    this.source = source;
    this.cardOf = cardOf;
    this.body = box.querySelector("tbody");
    this.heads = [...box.querySelectorAll("thead th")];
    this.order = Int32Array.from({ length: source.size }, (_, at) => at);
    this.orders = new Map();
    this.cards = new Map();
    this.page = 0;
    this.addControls();
    this.search("");
  }

  addControls() {
    const field = this.box.querySelector("input");
    field?.addEventListener("input", () => this.search(field.value));
    this.heads.forEach((head, column) =>
      head.firstChild.addEventListener("click", () => this.sort(column)));
    const steps = { First: -Infinity, Previous: -1, Next: 1, Last: Infinity };
    this.pages = make("div", undefined, "pages");
    for (const [name, step] of Object.entries(steps)) {
      const button = make("button", name);
      button.type = "button";
      button.dataset.step = step;
      button.addEventListener("click", () => this.turn(this.page + step));
      this.pages.append(button);
    }
    this.place = make("span", "", "muted");
    this.pages.insertBefore(this.place, this.pages.children[2]);
    this.box.append(this.pages);
  }

  search(text) {
    const parts = fold(text).split(/\s+/).filter(Boolean);
    this.fits = parts.length ? this.source.matching(parts) : null;
    this.refresh();
  }

  sort(column) {
    const head = this.heads[column];
    const was = head.getAttribute("aria-sort");
    const first = head.classList.contains("n") ? "descending" : "ascending";
    const second = first === "descending" ? "ascending" : "descending";
    for (const other of this.heads) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", was === first ? second : first);
    // The largest key comes first at the first click; a second click turns the order round.
    if (!this.orders.has(column)) {
      const keys = this.source.keys(column);
      const order = Int32Array.from({ length: this.source.size }, (_, at) => at);
      this.orders.set(column, order.sort((a, b) => keys[b] - keys[a] || a - b));
    }
    const order = this.orders.get(column);
    this.order = was === first ? order.slice().reverse() : order;
    this.refresh();
  }

  refresh() {
    this.shown = this.fits ? this.order.filter(at => this.fits[at]) : this.order;
    const [found, size] = [this.shown.length, this.source.size].map(n => n.toLocaleString("en"));
    const count = this.box.querySelector(".count");
    if (count) count.textContent = this.fits ? `${found} of ${size}` : size;
    this.turn(0);
  }

  turn(page) {
    const last = Math.max(Math.ceil(this.shown.length / PAGE) - 1, 0);
    this.page = Math.min(Math.max(page, 0), last);
    const start = this.page * PAGE;
    const visible = this.shown.subarray(start, start + PAGE);
    const nodes = [];
    for (const at of visible) {
      nodes.push(this.row(at));
      if (this.cards.has(at)) nodes.push(this.cards.get(at));
    }
    this.body.replaceChildren(...nodes);
    const end = start + visible.length;
    this.place.textContent = `${(start + 1).toLocaleString("en")} to ${end.toLocaleString("en")}`;
    this.pages.hidden = last === 0;
    for (const button of this.pages.querySelectorAll("button")) {
      button.disabled = +button.dataset.step < 0 ? this.page === 0 : this.page === last;
    }
  }

  row(at) {
    const row = this.source.row(at);
    row.querySelector("button").setAttribute("aria-expanded", this.cards.has(at));
    row.onclick = () => {
      if (getSelection().isCollapsed) this.toggle(at, row);
    };
    return row;
  }

  toggle(at, row) {
    const isOpen = this.cards.has(at);
    row.querySelector("button").setAttribute("aria-expanded", !isOpen);
    if (isOpen) {
      this.cards.get(at).remove();
      this.cards.delete(at);
      return;
    }
    const card = make("tr", undefined, "card");
    const cell = card.insertCell();
    cell.colSpan = this.heads.length;
    cell.append(this.cardOf(at));
    this.cards.set(at, card);
    row.after(card);
  }

  // Goes to a row and opens its card; whether it has one.
  open(id) {
    for (let place = 0; place < this.shown.length; place++) {
      if (this.source.id(this.shown[place]) !== id) continue;
      this.turn(Math.floor(place / PAGE));
      const row = [...this.body.rows].find(r => r.dataset.id === id);
      if (!this.cards.has(this.shown[place])) this.toggle(this.shown[place], row);
      row.scrollIntoView();
      return true;
    }
    return false;
  }
}
