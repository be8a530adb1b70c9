// What a page asks its server, with the token of the printed address.

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
