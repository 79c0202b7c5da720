/*
 * limits.h: every limit of the core in one place, each with its reason. Included by all parts.
 */
#ifndef BK_LIMITS_H
#define BK_LIMITS_H

enum {
    /* Events taken from one wait: enough that a busy turn costs one call, few enough for the stack
       of nobody and the caches of everybody. */
    BK_EVENTS_PER_WAIT = 256,
    /* A turn that has callbacks to call and has polled in vain this often before … */
    BK_FRUITLESS_POLLS = 8,
    /* … does so again only after this many microseconds: a busy loop is not to spend a third of its
       time asking, and a descriptor's owner is not to wait longer than nobody notices. */
    BK_POLL_EVERY_US = 50,
    /* What a stream without a buffer of its own reads into; one per loop. A large pipe or socket
       buffer is emptied in one call. */
    BK_SCRATCH_BYTES = 256 * 1024,
    /* Reads from one stream before the next has its turn, when each filled its room. */
    BK_READS_PER_EVENT = 4,
    /* Connections accepted from one listener in one turn, so that a storm of new ones does not
       starve those that are there. */
    BK_ACCEPTS_PER_EVENT = 64,
    BK_ACCEPTS_SHARED = 1,    /* … when other loops or processes accept from its sockets too */
    BK_ACCEPTS_AT_END = 4096, /* more than waits at a socket: /proc/sys/net/core/somaxconn */
    /* Milliseconds a listener rests when descriptors have run out (EMFILE, ENFILE, ENOMEM). */
    BK_ACCEPT_REST_MS = 100,
    /* Seconds in which a peer that is refused may read why, and send what it likes. */
    BK_REFUSAL_S = 2,
    /* Listening sockets of one endpoint that several loops or processes share. */
    BK_SOCKETS = 64,
    /* Seconds that connections have to come to their end when a server ends. */
    BK_DRAIN_S = 30,
    /* … and milliseconds that those who have just come have to say their first word. */
    BK_SILENT_MS = 500,
    /* Default backlog of a listening socket; the kernel lowers it to its own limit. */
    BK_BACKLOG = 1024,
    /* Sockets that a supervisor may pass: real ones pass a handful. */
    BK_SYSTEMD_FDS = 1024,
    /* Milliseconds in which a command may end by itself, once its pipes are closed. */
    BK_PROCESS_END_MS = 1000,
    /* Milliseconds a command may go on after it was asked to end, before it is killed. */
    BK_PROCESS_TERM_MS = 5000,
    /* … between two looks at whether it has ended, when nobody waits for that. */
    BK_PROCESS_REAP_MS = 100,
    /* … a stream waits to learn how its command ended, when its pipes have: it closes them a moment
       before it has ended. Looked at that often. */
    BK_PROCESS_STATUS_MS = 200,
    BK_PROCESS_ASK_MS = 5,
    /* Default water marks of what a stream has queued: asyncio's. */
    BK_WATER_LOW = 16 * 1024,
    BK_WATER_HIGH = 64 * 1024,
    /* Pieces are gathered for one call until they are this many bytes: no kernel takes more, and
       some refuse more than INT_MAX. */
    BK_SEND_BYTES = 1 << 30,
    /* Small copied writes are gathered in blocks of this size; that many are kept for reuse. */
    BK_BLOCK_BYTES = 4096,
    BK_BLOCKS_KEPT = 16,
    /* Freed queue entries a loop keeps for reuse. */
    BK_CHUNKS_KEPT = 256,
    /* Datagrams received in one call, after which others have their turn; and sent in one. Enough
       to share the cost of the call, few enough that the first answer does not wait long for the
       last question. */
    BK_DATAGRAMS_PER_CALL = 32,
    /* The longest datagram: asyncio's. UDP has none of 64 KiB. */
    BK_DATAGRAM_BYTES = 256 * 1024,
    BK_UDP_BYTES = 64 * 1024,
    /* What each queued datagram counts beside its bytes, or empty ones would cost nothing:
       asyncio's, and UDP's own header. */
    BK_DATAGRAM_HEADER = 8,
    /* A datagram that is queued, its address and, if they are copied, its bytes, where they are
       few; that many are kept for reuse. */
    BK_PACKET_BYTES = 256,
    BK_PACKETS_KEPT = 64,
    /* Milliseconds until the next try where a socket is said to be writable and takes nothing: the
       receiver on a UNIX socket is slow, of which nobody tells. */
    BK_DATAGRAM_REST_MS = 2,
    /* Worker threads of one loop: they wait for resolvers and disks, not for processors. */
    BK_WORKERS = 4,
    /* Descriptor numbers beyond this are refused: the table is indexed by them. */
    BK_FD_MAX = 1 << 24,
    /* Bytes a memory transport holds in transit, unless its maker says otherwise. */
    BK_MEMORY_BYTES = 64 * 1024,
    /* Sealed bytes read at once; one piece of memory per loop. As much as plain ones. */
    BK_TLS_IN_BYTES = 256 * 1024,
    /* Bytes sealed before they are sent: several records for one call, few enough for a cache. */
    BK_TLS_SEAL_BYTES = 64 * 1024,
    /* … with room for what records add to them, and for what an engine sends by itself. */
    BK_TLS_OUT_BYTES = 64 * 1024 + 4096,
    /* The largest plaintext of a record, RFC 8446 5.1. */
    BK_TLS_RECORD_BYTES = 16 * 1024,
    /* Milliseconds a handshake may take, unless its context says otherwise: asyncio's. */
    BK_TLS_HANDSHAKE_MS = 60 * 1000,
    /* A client hello, where a certificate is chosen by name; real ones have less than 4 KiB. */
    BK_TLS_HELLO_BYTES = 16 * 1024,
    /* Reads from a peer that goes on sending while we close, before others have their turn. */
    BK_TLS_DRAINS = 16,
    /* Contexts of clients' endpoints that a loop keeps. */
    BK_TLS_CONTEXTS = 16,
    /* A file of certificates: whole systems' trust is a quarter of it. */
    BK_TLS_FILE_BYTES = 1024 * 1024,
    /* Seconds between two looks at whether a server's certificate has changed. */
    BK_TLS_RELOAD_S = 5,
    /* Sessions a client's context keeps, each for one name. */
    BK_TLS_SESSIONS = 64,
    /* A PROXY header, with all that proxies add to it: real ones have less than 1 KiB. */
    BK_PROXY_HEADER_BYTES = 4096,
    /* … of which so much is read at first: most often with the first message behind it, to be held
       until it is asked for; and, with what is beside it, less than malloc() is quick with. */
    BK_PROXY_FIRST_BYTES = 896,
    /* Milliseconds in which a PROXY header must have come, or gone: proxies send it at once. */
    BK_PROXY_HEADER_MS = 10 * 1000,
    /* Networks whose PROXY headers one listener believes: each is looked at for a connection. */
    BK_PROXY_NETWORKS = 64,
    /* Seconds between two words to the log of connections whose header was no good. */
    BK_PROXY_TELL_S = 60,
    /* Signals have numbers below this on every system we know. */
    BK_SIGNALS = 65,
};

#endif
