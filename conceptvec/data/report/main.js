// Everything on the page together.

const searched = entry => fold([
  entry.id,
  entry.concept,
  inWords(entry.verdict ?? ""),
  ...[...entry.top_tokens, ...(entry.opposite_tokens ?? [])].map(([token]) => token),
].join(" "));

const start = async () => {
  const { header, arrays } = await unpack(document.getElementById("data").textContent);
  const poles = header.poles ? new Poles(header.poles, arrays) : null;
  const cards = new Cards(header.entries, poles, header.code);
  const listings = [];
  for (const box of document.querySelectorAll(".listing")) {
    const isPoles = box.id === "poles";
    const rows = [...box.querySelectorAll("tbody > tr")];
    // A pole may have an entry for each of two concepts, so a row says which is its own.
    const own = rows.map(row => header.entries[row.dataset.entry]);
    const source = isPoles ? poles : new Written(rows, own.map(searched));
    const listing = new Listing(box, source, at => cards.of(source.id(at), own[at]));
    // As in `conceptvec poles`, the best score comes first.
    if (isPoles) listing.sort(2);
    listings.push(listing);
  }
  const wanted = decodeURIComponent(location.hash.slice(1));
  if (/^L\d+_N\d+[+-]$/.test(wanted)) listings.some(listing => listing.open(wanted));
  document.body.dataset.ready = "yes";
};

start().catch(error => {
  const line = document.getElementById("trouble");
  line.hidden = false;
  line.textContent = "Search, sorting and cards need a browser of 2023 or later: " + error.message;
});
