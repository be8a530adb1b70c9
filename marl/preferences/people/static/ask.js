// What every page does: it asks its server, with the token of the printed address, and tells.

// This tab keeps the token, and the address bar does not.
if (location.hash.length > 1) {
  sessionStorage.setItem("token", location.hash.slice(1));
  history.replaceState(null, "", location.pathname);
}
const token = sessionStorage.getItem("token") ?? "";

export async function ask(path, body) {
  const options = { headers: { "x-marl-token": token } };
  if (body !== undefined) {
    options.method = "POST";
    options.headers["content-type"] = "application/json";
    options.body = JSON.stringify(body);
  }
  const reply = await fetch(path, options);
  const content = await reply.json();
  if (reply.ok || reply.status === 409) return { content, isStale: reply.status === 409 };
  throw Object.assign(new Error(content.error ?? content.refused ?? "it refused"), {
    isRefused: reply.status === 403 || reply.status === 421,
    isReply: true,
  });
}

const asked = document.querySelector("main > section"); // a page's first section
const at = (id) => document.getElementById(id);

// Shows a message in place of what is asked; without a title, what is asked again.
export function message(title, text = "") {
  asked.hidden = title !== null;
  at("message").hidden = title === null;
  at("message-title").textContent = title ?? "";
  at("message-text").textContent = text;
}

// Shows a line below what is asked.
export function say(text, isAlarm = false) {
  at("status").textContent = text;
  at("status").classList.toggle("alarm", isAlarm);
}
