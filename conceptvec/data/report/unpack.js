// The page's data: a length, a header in JSON, arrays of numbers; gzip, base64.

const ARRAYS = { Uint8Array, Int8Array, Uint16Array, Int32Array, Float32Array };

const inflated = async text => {
  const packed = Uint8Array.from(atob(text), character => character.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).arrayBuffer();
};

const unpack = async text => {
  const buffer = await inflated(text);
  const [length] = new Uint32Array(buffer, 0, 1);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, length)));
  let at = 8 + length;
  const arrays = {};
  for (const [name, kind, size] of header.arrays) {
    arrays[name] = new ARRAYS[kind](buffer, at, size);
    // Each array begins at a multiple of eight bytes.
    at += Math.ceil(arrays[name].byteLength / 8) * 8;
  }
  return { header, arrays };
};
