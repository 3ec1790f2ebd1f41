// Small things that every part of the page uses.

export const $ = (id) => document.getElementById(id);
export const counted = (number, noun) => (number === 1 ? `1 ${noun}` : `${number} ${noun}s`);

export function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

// The line that screen readers read out.
export function say(text, bad = false) {
  $("status").textContent = text;
  $("status").classList.toggle("bad", bad);
}
