/**
 * Transfer an XMTP archive from one device of a user to another, through a message-history-server.
 *
 * One device uploads the bytes of XMTP's `createArchive` with `uploadArchive`, and sends what that
 * returns to the other device over XMTP. The other device downloads the bytes with
 * `downloadArchive`, passes them to `importArchive`, and then calls `deleteArchive`.
 *
 * This file has no dependencies and runs in Node.js 20 or newer, in web pages and in web workers.
 * Browsers have WebCrypto only on https pages and on localhost.
 */

/** An uploaded archive. Whoever has this can download and delete it, so send it over XMTP only. */
export interface Bundle {
    /** Where to download it. An upload token is not part of this URL. */
    url: string;
    signingKey: string;
    /** HMAC-SHA256 of the archive under the signing key, in hex. */
    hmac: string;
    /** Bytes. */
    size: number;
    /** When the server deletes the archive, in ISO 8601. */
    expires: string;
}

export interface Options {
    /** Called with the bytes that were transferred so far, and with their total. */
    onProgress?: (bytes: number, total: number) => void;
    /** Cancels the transfer, which then throws the reason of the signal. */
    signal?: AbortSignal;
}

export interface UploadOptions extends Options {
    /** An upload token or JWT, if the server needs one. It may be in the server's URL instead. */
    token?: string;
    /** Lifetime of the archive on the server in seconds. The server has a default and a maximum. */
    ttl?: number;
    /** At least 128 random bits as ASCII text. By default, 256 random bits in hex. */
    signingKey?: string;
}

/** A transfer that failed. The message is for people, and `code` is for programs. */
export class HistoryError extends Error {
    override readonly name = "HistoryError";
    /**
     * A code from docs/errors.md, or one of this file: `connection_lost`, `unexpected_response`,
     * `size_mismatch`, or `hmac_mismatch` with status 0.
     */
    readonly code: string;
    /** What went wrong and what to do, as the server says it. */
    readonly detail: string;
    /** The HTTP status, or 0 if there was no response. */
    readonly status: number;
    /** Seconds to wait before the next attempt, if the server said so. */
    readonly retryAfter: number | undefined;

    constructor(code: string, detail: string, status = 0, retryAfter?: number, cause?: unknown) {
        super(`${code}: ${detail}`, { cause });
        this.code = code;
        this.detail = detail;
        this.status = status;
        this.retryAfter = retryAfter;
    }
}

const CHUNK_SIZE = 64 * 1024;
const MAX_ATTEMPTS = 6; // without progress between them
const MIN_PROGRESS = 64 * 1024; // bytes of a download, after which the attempts count anew
const MAX_WAIT = 60; // seconds between attempts; if the server asks for more, the transfer fails
const MAX_SILENCE = 180; // seconds without a transferred byte, after which an attempt fails

/** Upload the bytes of XMTP's `createArchive`. `server` may end with `/t/<upload token>`. */
export async function uploadArchive(
    server: string,
    archive: Uint8Array,
    options: UploadOptions = {},
): Promise<Bundle> {
    const base = new URL(server).href.replace(/\/+$/, "");
    const signingKey = options.signingKey ?? hex(crypto.getRandomValues(new Uint8Array(32)));
    const hmac = await sign(signingKey, archive);
    const headers = new Headers({ "X-HMAC": hmac, "X-SIGNING-KEY": signingKey });
    headers.set("Content-Type", "application/octet-stream");
    if (options.token !== undefined) headers.set("Authorization", `Bearer ${options.token}`);
    if (options.ttl !== undefined) headers.set("X-TTL", String(options.ttl));
    // If a response is lost, the server may keep an archive that nobody knows, until it expires.
    return retry(options.signal, async (signal, transferred) => {
        const response = await send(`${base}/upload`, headers, archive, signal, (bytes) => {
            transferred(0); // A retry starts anew, so these bytes are no progress.
            options.onProgress?.(bytes, archive.length);
        });
        if (!response.ok) throw await problem(response);
        const id = await response.text().catch(connectionLost);
        const expires = new Date(response.headers.get("Sunset") ?? NaN);
        if (!/^[0-9a-f-]{36}$/.test(id) || isNaN(expires.getTime())) {
            throw new HistoryError("unexpected_response", "The upload was answered without an id.");
        }
        const url = `${base.replace(/\/t\/[^/]*$/, "")}/files/${id}`;
        return { url, signingKey, hmac, size: archive.length, expires: expires.toISOString() };
    });
}

/** Download an archive for XMTP's `importArchive`. After a lost connection, request the rest. */
export async function downloadArchive(bundle: Bundle, options: Options = {}): Promise<Uint8Array> {
    const archive = new Uint8Array(bundle.size);
    let received = 0;
    let etag: string | null = null;
    await retry(options.signal, async (signal, transferred) => {
        if (received === bundle.size) return; // Only the end of the response was lost.
        const headers = proof(bundle);
        if (received > 0 && etag !== null) {
            headers.set("Range", `bytes=${received}-`);
            headers.set("If-Range", etag);
        }
        const response = await request(bundle.url, { headers, signal });
        const range = /^bytes (\d+)-\d+\/(\d+)$/.exec(response.headers.get("Content-Range") ?? "");
        const size = range ? range[2] : response.headers.get("Content-Length");
        if (Number(size) !== bundle.size || response.body === null) {
            throw sizeMismatch(bundle, `${size}`, response);
        }
        received = range ? Number(range[1]) : 0;
        etag = response.headers.get("ETag");
        const reader = response.body.getReader();
        for (;;) {
            const { done, value } = await reader.read().catch(connectionLost);
            if (done) break;
            if (value.length > bundle.size - received) throw sizeMismatch(bundle, "more", response);
            archive.set(value, received);
            received += value.length;
            transferred(value.length);
            options.onProgress?.(received, bundle.size);
        }
        if (received < bundle.size) connectionLost();
    });
    if ((await sign(bundle.signingKey, archive)) !== bundle.hmac) {
        throw new HistoryError("hmac_mismatch", "The downloaded bytes do not match the HMAC.");
    }
    return archive;
}

/** Delete an archive from the server. It is no error if it is gone already. */
export async function deleteArchive(bundle: Bundle, options: Options = {}): Promise<void> {
    const init = { method: "DELETE", headers: proof(bundle) };
    try {
        await retry(options.signal, (signal) => request(bundle.url, { ...init, signal }));
    } catch (error) {
        if (!(error instanceof HistoryError && error.code === "not_found")) throw error;
    }
}

function sizeMismatch(bundle: Bundle, size: string, response: Response): HistoryError {
    const detail = `The server has ${size} bytes instead of ${bundle.size}.`;
    return new HistoryError("size_mismatch", detail, response.status);
}

function proof(bundle: Bundle): Headers {
    return new Headers({ "X-HMAC": bundle.hmac, "X-SIGNING-KEY": bundle.signingKey });
}

function hex(bytes: Uint8Array): string {
    return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

async function sign(key: string, data: Uint8Array): Promise<string> {
    const algorithm = { name: "HMAC", hash: "SHA-256" };
    const raw = new TextEncoder().encode(key);
    const hmacKey = await crypto.subtle.importKey("raw", raw, algorithm, false, ["sign"]);
    const hmac = await crypto.subtle.sign("HMAC", hmacKey, data as Uint8Array<ArrayBuffer>);
    return hex(new Uint8Array(hmac));
}

/** Send a request. Redirects are errors, because they could send the key to another address. */
async function request(url: string, init: RequestInit): Promise<Response> {
    const options: RequestInit = { redirect: "error", cache: "no-store", ...init };
    const response = await fetch(url, options).catch(connectionLost);
    if (!response.ok) throw await problem(response);
    return response;
}

/** Turn the `application/problem+json` of a response into an error. */
async function problem(response: Response): Promise<HistoryError> {
    const { code, detail } = (await response.json().catch(() => null)) ?? {};
    const after = response.headers.get("Retry-After") ?? "";
    const seconds = /^\d+$/.test(after) ? Number(after) : (Date.parse(after) - Date.now()) / 1000;
    return new HistoryError(
        String(code ?? "unexpected_response"),
        String(detail ?? `The server answered with HTTP status ${response.status}.`),
        response.status,
        isNaN(seconds) ? undefined : Math.max(0, seconds),
    );
}

function connectionLost(cause?: unknown): never {
    const detail = "The connection to the server failed, or was silent for too long.";
    throw new HistoryError("connection_lost", detail, 0, undefined, cause);
}

/**
 * Upload with a known length, and report the progress. fetch() cannot report it in a browser, where
 * a stream as its body needs HTTP/2. Node.js has no XMLHttpRequest, but sends a stream with the
 * Content-Length that it is given.
 */
function send(
    url: string,
    headers: Headers,
    body: Uint8Array,
    signal: AbortSignal,
    report: (bytes: number) => void,
): Promise<Response> {
    if (typeof XMLHttpRequest === "undefined") {
        const stream = readable(body, signal, report);
        const length = { ...Object.fromEntries(headers), "Content-Length": String(body.length) };
        const init = { method: "POST", headers: length, body: stream, duplex: "half", signal };
        return fetch(url, { ...init, redirect: "error" }).catch(connectionLost);
    }
    const xhr = new XMLHttpRequest();
    xhr.open("POST", url);
    headers.forEach((value, name) => xhr.setRequestHeader(name, value));
    xhr.upload.onprogress = (event) => report(event.loaded);
    signal.addEventListener("abort", () => xhr.abort());
    return new Promise<void>((resolve, reject) => {
        xhr.onload = () => resolve();
        xhr.onerror = xhr.onabort = reject;
        xhr.send(body as Uint8Array<ArrayBuffer>);
    }).then(() => {
        const response = new Response(xhr.responseText, { status: xhr.status });
        for (const name of ["Retry-After", "Sunset"]) {
            response.headers.set(name, xhr.getResponseHeader(name) ?? "");
        }
        return response;
    }, connectionLost);
}

/** Return the bytes as a stream. It reports bytes when the next ones are requested after them. */
function readable(
    bytes: Uint8Array,
    signal: AbortSignal,
    report: (bytes: number) => void,
): ReadableStream<Uint8Array> {
    let position = 0;
    const pull = (controller: ReadableStreamDefaultController<Uint8Array>): void => {
        signal.throwIfAborted(); // Node.js reads on after the request has failed.
        report(position);
        if (position === bytes.length) return controller.close();
        const chunk = bytes.subarray(position, position + CHUNK_SIZE);
        controller.enqueue(chunk);
        position += chunk.length;
    };
    return new ReadableStream({ pull }, { highWaterMark: 0 });
}

/** Run a request again after 429, 503 and lost connections, with exponential backoff. */
async function retry<T>(
    userSignal: AbortSignal | undefined,
    run: (signal: AbortSignal, transferred: (bytes: number) => void) => Promise<T>,
): Promise<T> {
    for (let failures = 1; ; failures++) {
        userSignal?.throwIfAborted();
        const attempt = new AbortController();
        const abort = (): void => attempt.abort();
        userSignal?.addEventListener("abort", abort);
        let timer: ReturnType<typeof setTimeout> | undefined;
        let progress = 0;
        const transferred = (bytes: number): void => {
            progress += bytes;
            clearTimeout(timer);
            timer = setTimeout(abort, MAX_SILENCE * 1000);
        };
        transferred(0);
        let wait: number;
        try {
            return await run(attempt.signal, transferred);
        } catch (error) {
            userSignal?.throwIfAborted();
            if (!(error instanceof HistoryError)) throw error;
            if (progress >= MIN_PROGRESS) failures = 1;
            wait = error.retryAfter ?? (2 ** failures / 2) * (0.5 + Math.random() / 2);
            const temporary = error.code === "connection_lost" || [429, 503].includes(error.status);
            if (!temporary || wait > MAX_WAIT || failures === MAX_ATTEMPTS) throw error;
        } finally {
            clearTimeout(timer);
            userSignal?.removeEventListener("abort", abort);
            abort(); // This also closes the connection of a response that was not read to its end.
        }
        await sleep(wait, userSignal);
    }
}

/** Wait for some seconds, or until the signal is aborted. */
function sleep(seconds: number, signal: AbortSignal | undefined): Promise<void> {
    return new Promise((resolve) => {
        const wake = (): void => {
            clearTimeout(timer);
            signal?.removeEventListener("abort", wake);
            resolve();
        };
        const timer = setTimeout(wake, seconds * 1000);
        signal?.addEventListener("abort", wake);
    });
}
