"""Checks of every request: host, origin, token and size; and the headers of every response."""

import hmac
from http.cookies import SimpleCookie
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

COOKIE = "tokvid-studio"
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
MOST_BODY = 1 << 18  # bytes of a request that is no upload
SECURE = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}

# Browsers ignore this one, and complain, where they don't trust the address: elsewhere than on loopback without TLS.
TRUSTED = {"cross-origin-opener-policy": "same-origin"}


class TooLarge(Exception):
    """A request has more bytes than are allowed."""


class Guard:
    """ASGI middleware. `hosts` are the names in Host headers that are answered, with any port; None: all, by `token`.

    Another site's page can send requests to a server on loopback, also by a name of its own that resolves to it. Its
    requests have its own name as Host or as Origin.
    """

    def __init__(self, app: ASGIApp, hosts: tuple[str, ...] | None, token: str | None, most_upload: int):
        self.app, self.hosts, self.token, self.most_upload = app, hosts, token, most_upload

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        limit = self.most_upload if scope["path"] == "/api/uploads" else MOST_BODY
        sent, size = False, 0

        async def guarded_send(message: Message) -> None:
            nonlocal sent
            if message["type"] == "http.response.start":
                sent = True
                MutableHeaders(scope=message).update(SECURE | (TRUSTED if self._is_trusted(scope, headers) else {}))
            await send(message)

        async def counted() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > limit:
                raise TooLarge
            return message

        answer = self._refusal(scope, headers, limit)
        if answer is not None:
            await answer(scope, receive, guarded_send)
            return
        try:
            await self.app(scope, counted, guarded_send)
        except TooLarge:
            if not sent:
                await _too_large(limit)(scope, receive, guarded_send)

    def _is_trusted(self, scope: Scope, headers: Headers) -> bool:
        on_loopback = self.hosts is not None or _name(headers.get("host", "")) in LOOPBACK
        return on_loopback or scope["scheme"] == "https"

    def _refusal(self, scope: Scope, headers: Headers, limit: int) -> Response | None:
        host = headers.get("host", "")
        if self.hosts is not None and _name(host) not in self.hosts:
            return problem(421, "host", "this server answers on its own address only")
        origin = headers.get("origin")
        if origin is not None and (_place(origin) != host or not host):
            return problem(403, "origin", "another site's page may not use this server")
        if headers.get("sec-fetch-site") == "cross-site" and scope["method"] != "GET":
            return problem(403, "origin", "another site's page may not use this server")
        length = headers.get("content-length", "0")
        if not length.isascii() or not length.isdigit() or int(length) > limit:
            return _too_large(limit)
        return self._without_token(scope, headers) if self.token is not None else None

    def _without_token(self, scope: Scope, headers: Headers) -> Response | None:
        """None where the request has the token; a link with it sets a cookie."""
        assert self.token is not None
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
        if scope["path"] == "/" and _same(given, self.token):
            answer = RedirectResponse("/", 303)
            answer.set_cookie(COOKIE, self.token, httponly=True, samesite="strict", max_age=30 * 24 * 3600)
            return answer
        try:
            cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
        except Exception:  # http.cookies.CookieError, which is no ValueError
            cookie = None
        bearer = headers.get("authorization", "").removeprefix("Bearer ")
        if _same(cookie.value if cookie else "", self.token) or _same(bearer, self.token):
            return None
        return problem(401, "token", "open the address that tokvid studio printed, which has a token")


def problem(status: int, code: str, message: str) -> JSONResponse:
    """The form of all errors."""
    return JSONResponse({"error": {"code": code, "message": message}}, status)


def _too_large(limit: int) -> JSONResponse:
    return problem(413, "large", f"that is more than {limit / 2**20:g} MiB; make it smaller")


def _place(origin: str) -> str:
    """The host and port of an Origin header; "" where it isn't one."""
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return ""


def _name(host: str) -> str:
    """A Host header without its port."""
    name, _, port = host.rpartition(":")
    return name if name and port.isdigit() and not host.endswith("]") else host


def _same(given: str, token: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), token.encode())
