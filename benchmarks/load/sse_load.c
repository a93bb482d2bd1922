/* sse_load - closed-loop HTTP/1.1 load generator for OpenAI-style gateways, streaming (SSE) or not.
 *
 *   cc -O2 -o sse_load sse_load.c && ./sse_load --help
 *
 * Each connection sends its next request when the last answer is complete. For streams it reports time to
 * first content chunk, gap between chunks, and - when the upstream stamps content with
 * "@<CLOCK_MONOTONIC us>" as mock_upstream does - the one-way latency of every token through the gateway.
 * Prints one JSON object. A stream counts as good only with status 200, the expected number of content
 * chunks (--tokens) and data: [DONE].
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static const char *o_host = "127.0.0.1", *o_path = "/v1/chat/completions", *o_model = "mock", *o_body, *o_prompt = "Say something.";
static int o_port = 8000, o_conns = 1, o_stream = 0, o_tokens = 200, o_nocheck = 0, o_nokeep = 0;
static long o_delay_us = 0, o_requests = 0; static double o_dur = 5, o_warm = 0.5, o_ramp = 0;
static char hdrs[8192];

/* log-linear histogram of microseconds: 64 sub-buckets per power of two (<1.6 % error) */
typedef struct { uint32_t b[40 * 64]; uint64_t n; double sum; uint64_t max; } hist;
static void hadd(hist *h, int64_t v) {
    if (v < 0) v = 0; int i; if (v < 64) i = v; else { int e = 63 - __builtin_clzll(v); i = (e - 5) * 64 + ((v >> (e - 6)) & 63); }
    h->b[i]++; h->n++; h->sum += v; if ((uint64_t)v > h->max) h->max = v;
}
static double hq(hist *h, double q) {
    if (!h->n) return 0; uint64_t t = q * (h->n - 1), s = 0;
    for (int i = 0; i < 40 * 64; i++) { s += h->b[i]; if (s > t) { if (i < 64) return i; int e = i / 64 + 5; return (double)((64ull + i % 64) << (e - 6)); } }
    return h->max;
}
static uint64_t now_us(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec * 1000000ull + t.tv_nsec / 1000; }

enum { HEAD, LEN, CHUNK_SIZE, CHUNK_DATA, CHUNK_CRLF, TRAILER, TOCLOSE };
typedef struct {
    int fd, connected, sent, state, status, is_sse, close_after, done_seen, crlf; size_t sendoff;
    char head[8192]; size_t hl; uint64_t left; char line[16384]; size_t ll; uint64_t t0, last; long events; uint64_t started;
} conn;
static conn *cs; static int ep; static char *req; static size_t reqlen;
static uint64_t t_begin, t_meas, t_end; static long issued, completed, good, bad, connerr, inflight_max, shortst, statuses[6]; static uint64_t bytes, chunks, chunks_all, reads;
static hist h_total, h_ttft, h_gap, h_oneway; static int measuring, alive, opened, active; static char first_err[600];

static void start_conn(conn *c) {
    memset(c, 0, offsetof(conn, head)); c->hl = c->ll = 0; c->events = 0;
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0); int one = 1; setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons(o_port) }; inet_pton(AF_INET, o_host, &a.sin_addr);
    c->started = now_us(); connect(c->fd, (void *)&a, sizeof a);
    struct epoll_event e = { .events = EPOLLIN | EPOLLOUT | EPOLLET | EPOLLRDHUP, .data.ptr = c }; epoll_ctl(ep, EPOLL_CTL_ADD, c->fd, &e);
}
static void send_req(conn *c) {
    while (c->sendoff < reqlen) {
        ssize_t w = send(c->fd, req + c->sendoff, reqlen - c->sendoff, MSG_NOSIGNAL);
        if (w < 0) { if (errno == EAGAIN || errno == EINTR || errno == ENOTCONN) return; return; }
        c->sendoff += w;
    }
}
static int may_issue(void) { return !(o_requests && issued >= o_requests) && now_us() < t_end; }
static void begin_req(conn *c) {
    c->state = HEAD; c->hl = c->ll = 0; c->sendoff = 0; c->events = 0; c->done_seen = 0; c->is_sse = 0; c->crlf = 0; c->close_after = 0;
    c->t0 = c->last = now_us(); c->sent = 1; issued++; if (++active > inflight_max) inflight_max = active; send_req(c);
}
static void on_line(conn *c) {
    if (c->ll && c->line[c->ll - 1] == '\r') c->ll--;
    c->line[c->ll] = 0;
    if (c->ll > 5 && !memcmp(c->line, "data:", 5)) {
        char *d = c->line + 5; while (*d == ' ') d++;
        if (!strncmp(d, "[DONE]", 6)) { c->done_seen = 1; return; }
        char *k = strstr(d, "\"content\":"); if (!k) return;
        k += 10; while (*k == ' ') k++; if (*k != '"' || k[1] == '"') return;   /* null or empty: role-only chunk */
        uint64_t t = now_us(); c->events++; chunks_all++;
        if (measuring) {
            chunks++; if (c->events == 1) hadd(&h_ttft, t - c->t0); else hadd(&h_gap, t - c->last);
            if (k[1] == '@') hadd(&h_oneway, (int64_t)(t - strtoull(k + 2, NULL, 10)));
        }
        c->last = t;
    }
}
static void on_body(conn *c, const char *p, size_t n) {
    if (c->status != 200 && !first_err[0]) snprintf(first_err, sizeof first_err, "HTTP %d: %.*s", c->status, (int)(n > 400 ? 400 : n), p);
    if (!c->is_sse) {
        if (o_stream) return;
        return;
    }
    while (n) {
        const char *nl = memchr(p, '\n', n); size_t m = nl ? (size_t)(nl - p) : n;
        if (c->ll + m < sizeof c->line - 1) { memcpy(c->line + c->ll, p, m); c->ll += m; }
        p += m; n -= m; if (nl) { p++; n--; on_line(c); c->ll = 0; }
    }
}
static void finish(conn *c) {
    uint64_t t = now_us(); completed++; active--; c->sent = 0;
    int ok = c->status == 200 && (!o_stream || o_nocheck || (c->is_sse && c->done_seen && c->events == o_tokens));
    if (!ok && c->status == 200) { shortst++; if (!first_err[0]) snprintf(first_err, sizeof first_err, "short stream: %ld content chunks, done=%d", c->events, c->done_seen); }
    if (c->status >= 100 && c->status < 600) statuses[c->status / 100]++;
    if (measuring) { if (ok) { good++; hadd(&h_total, t - c->t0); } else bad++; }
}
static int parse_head(conn *c) {   /* 0 need more, else bytes of header */
    char *e = memmem(c->head, c->hl, "\r\n\r\n", 4); if (!e) return 0;
    *e = 0; c->status = atoi(c->head + 9); size_t n = e + 4 - c->head;
    char *p = strcasestr(c->head, "\r\ncontent-length:"), *te = strcasestr(c->head, "\r\ntransfer-encoding: chunked");
    c->is_sse = strcasestr(c->head, "text/event-stream") != NULL; c->close_after = strcasestr(c->head, "\r\nconnection: close") != NULL || o_nokeep;
    if (c->status == 100) { memmove(c->head, c->head + n, c->hl - n); c->hl -= n; return parse_head(c); }
    if (te) c->state = CHUNK_SIZE; else if (p) { c->left = strtoull(p + 17, NULL, 10); c->state = LEN; } else c->state = TOCLOSE;
    c->left = c->state == LEN ? c->left : 0; return n;
}
static int next_req(conn *c) { finish(c); if (c->close_after) return -1; if (may_issue()) begin_req(c); return 0; }
/* returns -1 to close (and maybe reconnect) */
static int feed(conn *c, const char *p, size_t n) {
    while (n) {
        if (!c->sent) return -1;
        switch (c->state) {
        case HEAD: {
            size_t old = c->hl, m = n < sizeof c->head - 1 - c->hl ? n : sizeof c->head - 1 - c->hl; if (!m) return -1;
            memcpy(c->head + c->hl, p, m); c->hl += m; c->head[c->hl] = 0; int h = parse_head(c);
            if (!h) { p += m; n -= m; break; }
            size_t used = h - old; if (c->hl < old + m) used = m - (c->hl - h); p += used; n -= used; c->hl = 0;
            if (c->state == LEN && !c->left) { if (next_req(c) < 0) return -1; } break; }
        case LEN: { size_t m = n < c->left ? n : c->left; on_body(c, p, m); p += m; n -= m; c->left -= m; if (!c->left && next_req(c) < 0) return -1; break; }
        case TOCLOSE: on_body(c, p, n); n = 0; break;
        case CHUNK_SIZE: { char ch = *p++; n--;
            if (ch == '\n') { c->state = c->left ? CHUNK_DATA : TRAILER; c->crlf = 0; }
            else if (c->crlf || ch == '\r' || ch == ';') c->crlf = 1;
            else { int v = ch >= '0' && ch <= '9' ? ch - '0' : (ch | 32) - 'a' + 10; c->left = c->left * 16 + v; } break; }
        case CHUNK_DATA: { size_t m = n < c->left ? n : c->left; on_body(c, p, m); p += m; n -= m; c->left -= m; if (!c->left) c->state = CHUNK_CRLF; break; }
        case CHUNK_CRLF: if (*p == '\n') { c->state = CHUNK_SIZE; c->left = 0; } p++; n--; break;
        case TRAILER: { char ch = *p++; n--; if (ch == '\n') { if (!c->crlf) { if (next_req(c) < 0) return -1; } c->crlf = 0; } else if (ch != '\r') c->crlf = 1; break; }
        }
    }
    return 0;
}
static void recycle(conn *c, int err) {
    if (c->sent) { if (c->state == TOCLOSE && !err) finish(c); else { active--; connerr++; if (measuring) bad++; if (!first_err[0]) snprintf(first_err, sizeof first_err, "connection closed mid-request (state %d, %ld chunks)", c->state, c->events); } c->sent = 0; }
    close(c->fd); c->fd = -1; if (may_issue() && connerr < 5000) start_conn(c); else alive--;
}
static const char usage[] =
"usage: sse_load [options]    load generator for OpenAI-style chat completions; prints one JSON object\n"
"  --host A --port N --path P     target (127.0.0.1 8000 /v1/chat/completions)\n"
"  --conns N          concurrent connections, one request in flight on each (1)\n"
"  --stream           ask for SSE and check every stream (else plain JSON requests)\n"
"  --tokens N         content chunks asked of the mock and expected per stream (200)\n"
"  --delay-us N       pause between chunks asked of the mock (0)\n"
"  --duration S       measured seconds (5)       --warmup S   unmeasured seconds before (0.5)\n"
"  --requests N       stop after N requests or --duration, whichever is first (0 = by time)   --ramp S   spread the connects over S seconds (0)\n"
"  --model M --prompt TEXT --body JSON   request content; --body replaces the whole body\n"
"  --header 'K: V'    extra header, repeatable    --no-check   do not demand the exact chunk count   --no-keepalive\n";
int main(int argc, char **argv) {
    static struct option o[] = { {"host",1,0,1},{"port",1,0,2},{"path",1,0,3},{"conns",1,0,4},{"stream",0,0,5},{"tokens",1,0,6},{"delay-us",1,0,7},{"duration",1,0,8},{"warmup",1,0,9},
        {"requests",1,0,10},{"ramp",1,0,11},{"model",1,0,13},{"prompt",1,0,14},{"body",1,0,15},{"header",1,0,16},{"no-check",0,0,17},{"no-keepalive",0,0,18},{"help",0,0,'?'},{0} };
    int k; while ((k = getopt_long(argc, argv, "", o, NULL)) != -1) switch (k) {
        case 1: o_host = optarg; break; case 2: o_port = atoi(optarg); break; case 3: o_path = optarg; break; case 4: o_conns = atoi(optarg); break; case 5: o_stream = 1; break;
        case 6: o_tokens = atoi(optarg); break; case 7: o_delay_us = atol(optarg); break; case 8: o_dur = atof(optarg); break; case 9: o_warm = atof(optarg); break; case 10: o_requests = atol(optarg); break;
        case 11: o_ramp = atof(optarg); break; case 13: o_model = optarg; break; case 14: o_prompt = optarg; break; case 15: o_body = optarg; break;
        case 16: if (strlen(hdrs) + strlen(optarg) + 3 < sizeof hdrs) { strcat(hdrs, optarg); strcat(hdrs, "\r\n"); } break; case 17: o_nocheck = 1; break; case 18: o_nokeep = 1; break;
        default: fputs(usage, stdout); return k == '?' && optind < argc ? 2 : 0; }
    signal(SIGPIPE, SIG_IGN); struct rlimit rl; getrlimit(RLIMIT_NOFILE, &rl); rl.rlim_cur = rl.rlim_max; setrlimit(RLIMIT_NOFILE, &rl);
    char *body; if (o_body) body = strdup(o_body); else if (asprintf(&body, "{\"model\":\"%s\",\"messages\":[{\"role\":\"system\",\"content\":\"You are a helpful assistant.\"},{\"role\":\"user\",\"content\":\"%s mock-tokens=%d mock-delay-us=%ld\"}],\"max_tokens\":%d,\"temperature\":0.7,\"stream\":%s}",
        o_model, o_prompt, o_tokens, o_delay_us, o_tokens, o_stream ? "true" : "false") < 0) return 1;
    reqlen = asprintf(&req, "POST %s HTTP/1.1\r\nhost: %s:%d\r\ncontent-type: application/json\r\naccept: %s\r\n%scontent-length: %zu\r\n%s\r\n%s", o_path, o_host, o_port,
        o_stream ? "text/event-stream" : "application/json", hdrs, strlen(body), o_nokeep ? "connection: close\r\n" : "", body);
    cs = calloc(o_conns, sizeof *cs); ep = epoll_create1(0); struct epoll_event evs[1024]; static char buf[262144];
    t_begin = now_us(); t_meas = t_begin + o_warm * 1e6; t_end = t_meas + o_dur * 1e6; measuring = o_warm <= 0; alive = o_conns; uint64_t t_last = 0;
    while (alive > 0) {
        uint64_t t = now_us(); if (!measuring && t >= t_meas) { measuring = 1; t_meas = t; t_end = t + o_dur * 1e6; }
        while (opened < o_conns && (o_ramp <= 0 || t - t_begin >= (uint64_t)(o_ramp * 1e6 * opened / o_conns)) && opened - completed - active < o_conns) start_conn(&cs[opened++]);
        if (measuring && t >= t_end) break;      /* streams still open are abandoned and counted as open_at_end */
        if (o_requests && completed >= o_requests) { t_last = t; break; }
        int n = epoll_wait(ep, evs, 1024, 5);
        for (int i = 0; i < n; i++) {
            conn *c = evs[i].data.ptr; if (c->fd < 0) continue;
            if (evs[i].events & EPOLLERR) { connerr += !c->connected; if (!first_err[0]) snprintf(first_err, sizeof first_err, "connect failed"); recycle(c, 1); continue; }
            if (evs[i].events & EPOLLOUT) { if (!c->connected) { c->connected = 1; if (may_issue()) begin_req(c); } else if (c->sent) send_req(c); }
            if (evs[i].events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP)) for (;;) {
                ssize_t r = recv(c->fd, buf, sizeof buf, 0);
                if (r > 0) { bytes += r; reads++; if (feed(c, buf, r) < 0) { recycle(c, 0); break; } continue; }
                if (r < 0 && (errno == EAGAIN || errno == EINTR)) break;
                recycle(c, r < 0); break;
            }
        }
    }
    if (!t_last) t_last = now_us();
    double secs = t_last > t_meas ? (t_last - t_meas) / 1e6 : 1e-6; long open_at_end = active; uint64_t c_meas = chunks; struct rusage ru; getrusage(RUSAGE_SELF, &ru);
    printf("{\"conns\":%d,\"stream\":%s,\"secs\":%.3f,\"ok\":%ld,\"bad\":%ld,\"conn_errors\":%ld,\"short_streams\":%ld,\"open_at_end\":%ld,\"max_in_flight\":%ld,\"rps\":%.1f,\"chunks_per_s\":%.0f,\"mb_per_s\":%.2f,\"reads\":%lu,",
        o_conns, o_stream ? "true" : "false", secs, good, bad, connerr, shortst, open_at_end, inflight_max, good / secs, c_meas / secs, bytes / secs / 1e6, reads);
    hist *hs[] = { &h_total, &h_ttft, &h_gap, &h_oneway }; const char *nm[] = { "total_us", "ttft_us", "gap_us", "oneway_us" };
    for (int i = 0; i < 4; i++) printf("\"%s\":{\"n\":%lu,\"mean\":%.0f,\"p50\":%.0f,\"p90\":%.0f,\"p99\":%.0f,\"max\":%lu},", nm[i], hs[i]->n, hs[i]->n ? hs[i]->sum / hs[i]->n : 0, hq(hs[i], .5), hq(hs[i], .9), hq(hs[i], .99), hs[i]->max);
    printf("\"status\":{\"2xx\":%ld,\"4xx\":%ld,\"5xx\":%ld},\"load_cpu_s\":%.2f,\"first_error\":\"", statuses[2], statuses[4], statuses[5], ru.ru_utime.tv_sec + ru.ru_stime.tv_sec + (ru.ru_utime.tv_usec + ru.ru_stime.tv_usec) / 1e6);
    for (char *s = first_err; *s; s++) { if (*s == '"' || *s == '\\') putchar('\\'); if (*s >= 32) putchar(*s); } printf("\"}\n");
    return 0;
}
