// Requests to the server. Errors have its one line as message, and a code that the page may translate.

export class Problem extends Error {
  constructor(code, message) {
    super(message);
    this.code = code;
  }
}

function problem(status, text) {
  try {
    const { code, message } = JSON.parse(text).error;
    return new Problem(code, message);
  } catch {
    return new Problem("http", `${status}`);
  }
}

const PATIENCE = 10_000; // milliseconds that an answer may take which needs no work

// The answer, read as "json", "text" or "arrayBuffer"; one that doesn't come, or ends in the middle, is none.
async function send(method, path, read, { body, signal } = {}) {
  const options = { method, headers: {}, signal };
  if (body !== undefined) {
    options.headers["content-type"] = "application/json";
    options.body = JSON.stringify(body);
  }
  let response;
  let content;
  try {
    response = await fetch(path, options);
    content = await response[response.ok ? read : "text"]();
  } catch {
    throw new Problem("offline", "");
  }
  if (!response.ok) throw problem(response.status, content);
  return content;
}

export const get = (path) => send("GET", path, "json", { signal: AbortSignal.timeout(PATIENCE) });
export const post = (path, body) => send("POST", path, "json", { body });
export const remove = (path) => send("DELETE", path, "text");
export const bytes = (path) => send("GET", path, "arrayBuffer");

// Uploads a file; `onprogress` is called with the share that has been sent.
export function upload(file, limit, onprogress) {
  return new Promise((resolve, reject) => {
    if (file.size > limit) return reject(new Problem("large", ""));
    const request = new XMLHttpRequest();
    request.open("POST", `/api/uploads?name=${encodeURIComponent(file.name.slice(-80))}`);
    request.setRequestHeader("content-type", "application/octet-stream");
    request.upload.onprogress = (event) => event.lengthComputable && onprogress(event.loaded / event.total);
    request.onerror = () => reject(new Problem("offline", ""));
    request.onload = () => {
      if (request.status === 201) resolve(JSON.parse(request.responseText));
      else reject(problem(request.status, request.responseText));
    };
    request.send(file);
  });
}
