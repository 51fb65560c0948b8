// The card of one pole: as much as the page knows of it.

const BARS = 12;

class Cards {
  constructor(entries, poles, code) {
    // The first entry of a pole is the one that was tested, if any was.
    this.entries = new Map([...entries].reverse().map(entry => [entry.id, entry]));
    this.poles = poles;
    this.code = code;
  }

  of(id, entry = this.entries.get(id)) {
    const pole = this.poles?.byId.get(id);
    const effects = entry?.scan?.by_concept ?? this.poles?.effectsOf(pole);
    const card = make("div");
    const parts = make("div", undefined, "parts");
    card.append(this.top(id, entry, pole), parts);
    parts.append(...this.lists(entry, pole));
    if (effects) parts.append(effectsOf(effects, entry?.concept));
    if (entry?.words?.length) parts.append(wordsLost(entry.words));
    if (entry?.damage) parts.append(harm(entry), firing(entry));
    if (entry?.examples?.length) parts.append(examples(entry.examples));
    if (entry?.activation) parts.append(activations(entry.activation));
    if (entry?.continuations?.length) parts.append(continuations(entry.continuations));
    return card;
  }

  top(id, entry, pole) {
    const head = make("div");
    const line = make("div", undefined, "top");
    const name = entry ? entry.concept : this.poles.answer(pole);
    line.append(make("strong", id), make("span", inWords(name)), verdictOf(entry));
    line.append(copyButton("Copy id", id), copyButton("Copy vector code", this.codeOf(id)));
    const facts = entry ? entryFacts(entry) : this.poleFacts(pole);
    head.append(line, make("div", facts, "muted"));
    return head;
  }

  // A line of Python that gives the vector, turned as the pole is.
  codeOf(id) {
    const [, layer, neuron, sign] = id.match(/^L(\d+)_N(\d+)([+-])$/);
    return this.code
      .replace("{sign}", sign === "-" ? "-" : "")
      .replace("{layer}", +layer)
      .replace("{neuron}", +neuron);
  }

  poleFacts(pole) {
    const score = number(this.poles.score[pole] / 10000, 2);
    const nearest = this.poles.concepts[this.poles.concept[pole]];
    return nearest === undefined
      ? "none of its words is a concept's"
      : `score ${score} for its nearest concept, ${nearest}; not tested`;
  }

  // Both poles of the neuron, as far as the page knows them.
  lists(entry, pole) {
    const isTurned = entry ? entry.id.endsWith("-") : this.poles.minus[pole];
    const title = "Promoted" + (isTurned ? " (by a negative activation)" : "");
    const own = entry
      ? tokenBars(entry.top_tokens, title, "")
      : wordList(this.poles.words(pole), title);
    if (entry?.opposite_tokens?.length) {
      return [own, tokenBars(entry.opposite_tokens, "The other pole: suppressed", "suppressed")];
    }
    const other = pole === undefined ? -1 : this.poles.other(pole);
    if (other < 0) return [own];
    return [own, wordList(this.poles.words(other), "The other pole: suppressed")];
  }
}

const wordList = (words, title) => {
  const node = section(title);
  node.append(make("p", words.join(", "), "words"));
  return node;
};

const verdictOf = entry => {
  if (!entry?.verdict) return make("span", entry ? "candidate, not tested" : "", "muted");
  const why = entry.failed?.length ? ": " + entry.failed.join("; ") : "";
  return make("span", inWords(entry.verdict) + why, entry.verdict);
};

const entryFacts = entry => {
  const score = entry.score === undefined ? [] : ["score " + number(entry.score, 2)];
  if (entry.q !== undefined) {
    score.push(`found by its effect alone, q ${number(entry.q, 4)}`);
  }
  if (!entry.verdict) return score.join(", ");
  const [low, high] = entry.ci95.map(limit => number(limit));
  return [
    ...score,
    `${entry.n_concept_positions} own and ${entry.n_unrelated_positions} matched positions`,
    `p ${number(entry.p_value, 4)}`,
    `q ${number(entry.q_value, 4)}`,
    `selectivity ${number(entry.selectivity)} [${low}, ${high}] nats`,
  ].join(", ");
};

const tokenBars = (tokens, title, name) => {
  const node = section(title, name);
  const largest = Math.abs(tokens[0]?.[1] ?? 0);
  for (const [token, value] of tokens.slice(0, BARS)) {
    node.append(bar(token.trim(), Math.abs(value), [0, largest], value.toPrecision(3)));
  }
  const rest = tokens.slice(BARS).map(([token]) => token.trim());
  if (rest.length) node.append(make("small", "then " + rest.join(", "), "muted"));
  return node;
};

const effectsOf = (effects, own) => {
  const node = section("Effect on every concept (nats)");
  const known = Object.values(effects).filter(isNumber);
  const range = [Math.min(0, ...known), Math.max(0, ...known)];
  for (const [concept, effect] of Object.entries(effects)) {
    node.append(bar(inWords(concept), effect, range, number(effect), concept === own));
  }
  node.append(make("small", "What the concept's words lose without the pole, first order.", "muted"));
  return node;
};

const wordsLost = words => {
  const node = section("Words that lose most (nats)");
  const drops = words.map(([, drop]) => drop ?? 0);
  const range = [Math.min(0, ...drops.slice(0, BARS)), Math.max(0, ...drops)];
  for (const [word, drop, positions] of words.slice(0, BARS)) {
    const line = bar(word, drop, range, number(drop, 2));
    line.title = positions + (positions === 1 ? " position" : " positions");
    node.append(line);
  }
  return node;
};

const harm = entry => {
  const node = section("Damage (nats)");
  const lines = Object.entries(entry.damage).map(([kind, drops]) => [kind, drops]);
  // Zero ablation on the cloze prompts, which never decides.
  if (entry.prompts) lines.push(["on its prompts", entry.prompts]);
  if (!lines.length) node.append(make("p", "The verdict needed none.", "muted"));
  else node.append(table(["", "concept", "unrelated"], lines.map(([kind, drops]) =>
    [kind, number(drops.concept_drop), number(drops.unrelated_drop)])));
  return node;
};

// In which of the four combinations of signs the neuron fires: a pole mixes two of them.
const firing = entry => {
  const node = section("Gate and up before its words");
  const shares = entry.gate_up;
  if (shares) {
    node.append(table(["", "up +", "up −"], [
      ["gate +", percent(shares.plus_plus), percent(shares.plus_minus)],
      ["gate −", percent(shares.minus_plus), percent(shares.minus_minus)],
    ]));
  }
  else node.append(make("p", "Not measured.", "muted"));
  if (isNumber(entry.firing?.ratio)) {
    const times = entry.firing.ratio.toFixed(1);
    node.append(make("small", `It fires ${times} times as strongly as before other words.`, "muted"));
  }
  return node;
};

// A text with a word marked; the space before the word stays outside the mark.
const marked = (before, word, after) => {
  const bare = word.trimStart();
  const space = word.slice(0, word.length - bare.length);
  return [before + space, make("mark", bare || word), after];
};

const examples = all => {
  const node = section("Examples from the text: the word's probability with the vector → without it", "wide");
  for (const example of all) {
    const line = make("p");
    const from = probability(example.clean);
    const to = probability(example.damaged);
    line.append(...marked(example.text, example.word, ""));
    const where = example.own ? "" : ", another word where it fires";
    line.append(make("span", `  ${from} → ${to}${where}`, "muted"));
    node.append(line);
  }
  return node;
};

const activations = facts => {
  const rate = (100 * facts.firing_rate).toFixed(1);
  const node = section(`Strongest activations (it fires on ${rate} % of the text)`, "wide");
  for (const [text, value] of facts.contexts) {
    const line = make("p", undefined, "muted");
    const pieces = text.split(/[»«]/);
    line.append((value > 0 ? "+" : "") + value.toFixed(2) + "  ");
    line.append(...(pieces.length === 3 ? marked(...pieces) : [text]));
    node.append(line);
  }
  return node;
};

const continuations = trials => {
  const node = section("How the model goes on", "wide");
  for (const trial of trials) {
    const list = make("dl");
    for (const [name, text] of Object.entries(trial)) {
      list.append(make("dt", name), make("dd", String(text)));
    }
    node.append(list);
  }
  return node;
};
