// Small things: every text becomes a text node, so nothing of a vocabulary is ever markup.

const make = (tag, text, name) => {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  if (name) node.className = name;
  return node;
};

const section = (title, name) => {
  const node = make("section", undefined, name);
  node.append(make("h3", title));
  return node;
};

const table = (heads, lines) => {
  const node = make("table");
  const top = node.createTHead().insertRow();
  const body = node.createTBody();
  heads.forEach((text, column) => top.append(make("th", text, column ? "n" : "")));
  for (const line of lines) {
    const row = body.insertRow();
    line.forEach((text, column) => row.append(make("td", text, column ? "n" : "")));
  }
  return node;
};

const isNumber = value => typeof value === "number" && !Number.isNaN(value);

// No sign before a zero, and a dash where nothing was measured.
const number = (value, digits = 3) =>
  isNumber(value) ? value.toFixed(digits).replace(/^-(0\.?0*)$/, "$1") : "–";

const percent = share => isNumber(share) ? (100 * share).toFixed(0) + " %" : "–";

const probability = logP => isNumber(logP) ? (100 * Math.exp(logP)).toPrecision(2) + " %" : "–";

const fold = text => text.normalize("NFKC").toLowerCase();

const inWords = text => text.replaceAll("_", " ");

// One line of a chart: name, bar, value. The bar begins at zero, to either side.
const bar = (name, value, [low, high], text, isOwn = false) => {
  const line = make("div", undefined, isOwn ? "bar own" : "bar");
  const span = high - low || 1;
  const cell = make("div");
  const drawn = make("i");
  drawn.style.display = "block";
  drawn.style.width = 100 * Math.abs(value || 0) / span + "%";
  drawn.style.marginLeft = 100 * (Math.min(value || 0, 0) - low) / span + "%";
  cell.append(drawn);
  line.append(make("bdi", name), cell, make("span", text));
  return line;
};

const copied = async text => {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Older browsers give a page from a file no clipboard: they copy what is selected.
    const field = make("textarea", text);
    document.body.append(field);
    field.select();
    document.execCommand("copy");
    field.remove();
  }
};

const copyButton = (label, text) => {
  const button = make("button", label, "copy");
  button.type = "button";
  button.title = text;
  button.dataset.copies = text;
  button.addEventListener("click", async () => {
    await copied(text);
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = label; }, 1500);
  });
  return button;
};
