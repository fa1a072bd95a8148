// The HTTP API, relative to the page, so that both may lie behind a prefix.

const PATIENCE = 4; // tries, while the server says that it is busy
const KEPT = "raygen-token"; // for this tab alone

/** An answer that is a problem document (RFC 9457). */
export class Refused extends Error {
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }
}

export const token = {
  get: () => sessionStorage.getItem(KEPT) ?? "",
  set: (value) => sessionStorage.setItem(KEPT, value),
};

/** The answer to a request. Throws Refused; waits and asks again where the server says when. */
export async function ask(path, options = {}) {
  const headers = { ...options.headers };
  if (token.get()) headers.Authorization = `Bearer ${token.get()}`;
  for (let tries = 1; ; tries += 1) {
    const answer = await fetch(path, { ...options, headers });
    if (answer.ok) return answer;
    const wait = Number(answer.headers.get("Retry-After"));
    const busy = answer.status === 429 || answer.status === 503;
    if (busy && wait > 0 && tries < PATIENCE && !options.signal?.aborted) {
      await new Promise((resolve) => setTimeout(resolve, Math.min(wait, 10) * 1000));
      continue;
    }
    const problem = await answer.json().catch(() => ({}));
    throw new Refused(answer.status, problem.detail ?? `The server answered ${answer.status}.`);
  }
}

/** What the page asks for a clip, as path and query. */
export function clipPath(model, seed, asked, format, scale) {
  const query = new URLSearchParams();
  for (const [key, value] of Object.entries(asked)) if (value !== "") query.set(key, value);
  query.set("format", format);
  if (scale > 1) query.set("scale", scale);
  return `v1/models/${encodeURIComponent(model)}/clips/${seed}?${query}`;
}

/** The same as a command. */
export function curl(path, file) {
  const url = new URL(path, document.baseURI);
  const proof = token.get() ? ' -H "Authorization: Bearer $RAYGEN_TOKEN"' : "";
  return `curl -L${proof} -o ${file} '${url}'`;
}
