// Requests to the server. Paths are relative, so the page also works under a prefix of a reverse proxy.

const STORED = "memtok key";

let key = "";
try {
  key = sessionStorage.getItem(STORED) ?? "";
} catch {
  // The browser blocks storage: the key lasts until the page is left.
}

export const keyInUse = () => key !== "";

/**
 * Sends `value` as the key of every further request; without one if it is empty.
 *
 * @throws {Failure} it cannot stand in a header
 */
export function useKey(value) {
  if (!/^[!-~]*$/.test(value)) throw new Failure("A key has no spaces and no characters beyond ASCII.");
  key = value;
  try {
    sessionStorage.setItem(STORED, value);
  } catch {
    // As above.
  }
}

/** An error to be shown. `message` is one line for the user, `status` that of the response, or 0 without one. */
export class Failure extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

/**
 * The JSON of a response, or null if it has no body.
 *
 * @throws {Failure} what the server refuses, or that it does not answer
 */
export async function request(method, path, { body, signal } = {}) {
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  if (body) headers["Content-Type"] = body.type || "application/octet-stream";
  let response, text;
  try {
    response = await fetch(`v1/${path}`, { method, headers, body, signal, cache: "no-store" });
    text = await response.text();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    const file = body ? ", or the file cannot be read" : "";
    throw new Failure(`No answer: the server does not run or closed the connection${file}.`);
  }
  let answer = null;
  try {
    answer = text ? JSON.parse(text) : null;
  } catch {
    if (response.ok) throw new Failure("The server's answer is not JSON.", response.status);
  }
  if (response.ok) return answer;
  const seconds = response.headers.get("Retry-After");
  const later = /^\d+$/.test(seconds ?? "") ? ` Try again in ${seconds} s.` : "";
  throw new Failure((answer?.error ?? `The server answers with status ${response.status}.`) + later, response.status);
}

/** A function that aborts the signal it gave before and gives a new one: only the newest request counts. */
export function newestOnly() {
  let last = null;
  return () => {
    last?.abort();
    last = new AbortController();
    return last.signal;
  };
}
