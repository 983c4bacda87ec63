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

async function send(method, path, body) {
  const options = { method, headers: {} };
  if (body !== undefined) {
    options.headers["content-type"] = "application/json";
    options.body = JSON.stringify(body);
  }
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Problem("offline", "");
  }
  if (!response.ok) throw problem(response.status, await response.text());
  return response;
}

export const get = async (path) => (await send("GET", path)).json();
export const post = async (path, body) => (await send("POST", path, body)).json();
export const remove = (path) => send("DELETE", path);
export const bytes = async (path) => (await send("GET", path)).arrayBuffer();

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
