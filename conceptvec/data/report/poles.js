// Every scored pole of the run, by number: layer by layer, neuron by neuron, + before −.

class Poles {
  constructor(facts, arrays) {
    Object.assign(this, facts, arrays);
    this.size = this.layer.length;
    this.folded = this.texts.map(fold);
    this.ids = Array.from({ length: this.size }, (_, pole) => this.idOf(pole));
    this.foldedIds = this.ids.map(fold);
    this.byId = new Map(this.ids.map((id, pole) => [id, pole]));
    this.names = [...this.concepts, ...this.answers].map(name => fold(inWords(name)));
    this.findStrongest();
  }

  idOf(pole) {
    const layer = String(this.layer[pole]).padStart(2, "0");
    const neuron = String(this.neuron[pole]).padStart(4, "0");
    return `L${layer}_N${neuron}${this.minus[pole] ? "-" : "+"}`;
  }

  // The concept that loses most without the pole, and how much.
  findStrongest() {
    this.strongest = new Float32Array(this.size).fill(-Infinity);
    this.serves = new Int16Array(this.size).fill(-1);
    if (!this.measured) return;
    const width = this.measured.length;
    for (let pole = 0; pole < this.size; pole++) {
      for (let concept = 0; concept < width; concept++) {
        if (!this.known[concept]) continue;
        const effect = this.effects[pole * width + concept] / 127 * this.largest[pole];
        if (effect > this.strongest[pole]) {
          this.strongest[pole] = effect;
          this.serves[pole] = concept;
        }
      }
    }
  }

  // Number of what the pole stands for among the concepts and answers.
  stands(pole) {
    return this.label[pole] ? this.concepts.length + this.label[pole] : this.concept[pole];
  }

  answer(pole) {
    return this.label[pole] ? this.answers[this.label[pole]] : this.concepts[this.concept[pole]];
  }

  words(pole) {
    const words = [];
    for (let at = pole * this.width; at < (pole + 1) * this.width && this.word[at]; at++) {
      words.push(this.texts[this.word[at] - 1]);
    }
    return words;
  }

  // The same neuron's other pole, or −1: it is the next one or the one before.
  other(pole) {
    const beside = this.minus[pole] ? pole - 1 : pole + 1;
    const isThere = beside >= 0 && beside < this.size;
    const isSame = isThere && this.layer[beside] === this.layer[pole]
      && this.neuron[beside] === this.neuron[pole];
    return isSame ? beside : -1;
  }

  // Concept → effect in nats, null where the text held none of its words.
  effectsOf(pole) {
    if (pole === undefined || !this.measured) return undefined;
    const width = this.measured.length;
    return Object.fromEntries(this.measured.map((concept, at) => {
      const effect = this.effects[pole * width + at] / 127 * this.largest[pole];
      return [concept, this.known[at] ? effect : null];
    }));
  }

  // Which poles have every part among their words, or in their id or answer: 1 or 0 of each.
  matching(parts) {
    const fits = new Uint8Array(this.size).fill(1);
    for (const part of parts) {
      const hasText = Uint8Array.from(this.folded, text => text.includes(part));
      const hasName = Uint8Array.from(this.names, name => name.includes(part));
      for (let pole = 0; pole < this.size; pole++) {
        if (!fits[pole]) continue;
        fits[pole] = hasName[this.stands(pole)] || this.foldedIds[pole].includes(part) ? 1 : 0;
        for (let at = pole * this.width; at < (pole + 1) * this.width && !fits[pole]; at++) {
          if (this.word[at] && hasText[this.word[at] - 1]) fits[pole] = 1;
        }
      }
    }
    return fits;
  }

  // What sorts each column, in the order of the table's heads; the largest key comes first.
  keys(column) {
    const keyOf = [
      pole => -pole,
      pole => -this.stands(pole),
      pole => this.score[pole],
      pole => this.strongest[pole],
      pole => -this.word[pole * this.width],
    ][column];
    return Float64Array.from({ length: this.size }, (_, pole) => keyOf(pole));
  }

  row(pole) {
    const row = make("tr");
    row.dataset.id = this.ids[pole];
    const button = make("button", this.ids[pole]);
    button.setAttribute("aria-expanded", "false");
    row.insertCell().append(button);
    const effect = this.serves[pole] < 0 ? "–"
      : this.measured[this.serves[pole]] + " " + number(this.strongest[pole]);
    const answer = this.label[pole] ? "muted" : "";
    row.append(
      make("td", inWords(this.answer(pole)), answer),
      make("td", number(this.score[pole] / 10000, 2), "n"),
      make("td", effect, "n less"),
      make("td", this.words(pole).join(" "), "tokens"),
    );
    return row;
  }

  id(pole) {
    return this.ids[pole];
  }
}
