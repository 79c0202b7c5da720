/*
 * limits.h: the limits of the protocols and of the stores, each with its reason.
 */
#ifndef BK_PROTOCOL_LIMITS_H
#define BK_PROTOCOL_LIMITS_H

enum {
    /* A growing buffer starts with this: most lines that arrive in pieces fit. */
    BK_BUFFER_START = 256,
    /* Default for a line of the line protocol: asyncio's. */
    BK_LINE_MAX = 64 * 1024,

    /* A command with its CRLF (RFC 5321, 4.5.3.1.4). */
    BK_SMTP_LINE_MAX = 512,
    /* MAIL and RCPT: extensions add to those 512 (SIZE 26, BODY 17; SMTPUTF8, DSN and AUTH hundreds
       more), and a client must hear 555 for an unknown one rather than 500. */
    BK_SMTP_PATH_LINE_MAX = 2048,
    /* A line of an AUTH exchange (RFC 4954, 4). */
    BK_SMTP_AUTH_LINE_MAX = 12288,
    /* A path with its brackets, and what is in it (RFC 5321, 4.5.3.1.1 to 3). */
    BK_SMTP_PATH_MAX = 256,
    BK_SMTP_LOCAL_MAX = 64,
    BK_SMTP_DOMAIN_MAX = 255,
    BK_SMTP_LABEL_MAX = 63,
    /* A line of a reply with its CRLF (4.5.3.1.5). */
    BK_SMTP_REPLY_MAX = 512,
    /* All lines of the reply to EHLO: our name, and a dozen short ones. */
    BK_SMTP_KEYWORDS_MAX = 640,
    /* [1.2.3.4] or [IPv6:…], with the longest IPv6 address. */
    BK_SMTP_PEER_MAX = 64,
    /* A line of a reply that a client takes: four times what a server may send (4.5.3.1.5), for
       many put whole web addresses into their refusals. */
    BK_SMTP_RESPONSE_LINE_MAX = 2048,
    /* … and how many, and how much together: EHLO's have some twenty. */
    BK_SMTP_RESPONSE_LINES_MAX = 128,
    BK_SMTP_RESPONSE_MAX = 16 * 1024,
    /* Data is given to the runner in such pieces: as large as a stream's high-water mark. */
    BK_SMTP_PIECE = 64 * 1024,
    /* A piece between two dots that is smaller is copied: a reference costs more. */
    BK_SMTP_PIECE_COPIED = 1024,
    /* SCRAM: what a server may have a client do, on its loop: it stands still for some 0.15 s.
       Those of mail ask for 4,096 (RFC 7677) to 65,536; with one that asks for more, choose PLAIN.
     */
    BK_SCRAM_ITERATIONS_MAX = 100 * 1000,
    BK_SCRAM_SALT_MAX = 192,
    /* Commands are gathered up to this, and sent together. */
    BK_SMTP_GROUP = 4096,
    /* What the large mail providers accept. */
    BK_SMTP_MESSAGE_MAX = 25 * 1024 * 1024,
    /* The least that RFC 5321, 4.5.3.1.8 allows; clients send the rest as another message. */
    BK_SMTP_RECIPIENTS_MAX = 100,
    /* A session ends when it was refused this many times as many recipients as a message may have,
       without a message accepted. */
    BK_SMTP_CROWD_FACTOR = 10,
    /* Honest clients make few errors; those who try out addresses make many. */
    BK_SMTP_ERRORS_MAX = 20,
    /* Commands that bring no mail: NOOP keeps a connection open for nothing. */
    BK_SMTP_IDLE_MAX = 100,
    /* Seconds without a byte: the least that RFC 5321, 4.5.3.2.7 allows. */
    BK_SMTP_TIMEOUT = 300,
    /* Room for the trace header: two host names of 255 and the words between them. */
    BK_SMTP_TRACE_MAX = 1024,
    /* ENVID=; and ORCPT= and AUTH= (RFC 3461, 4.2 and 4.4; RFC 4954, 5). */
    BK_SMTP_ENVID_MAX = 100,
    BK_SMTP_XTEXT_MAX = 500,
    /* Digits in SIZE= (RFC 1870). */
    BK_SMTP_SIZE_DIGITS = 20,

    /* The host in a Maildir file's name, so that the whole stays below the 255 of file systems. */
    BK_MAILDIR_HOST_MAX = 128,
    /* The longest path of a Maildir: below the 4096 of the systems we know, names included. */
    BK_MAILDIR_PATH_MAX = 3072,
    /* A name that exists already is somebody else's: how often to try another. */
    BK_MAILDIR_TRIES = 8,
    /* Groups of messages that a loop stores at the same time: one is written while the disk is busy
       with the other. More would only make them smaller. */
    BK_MAILDIR_WRITERS = 2,
    /* Messages in a group: each has a file open. */
    BK_MAILDIR_GROUP = 32,
    /* … from which on a group is synced by one call, which waits for all that other programs have
       written, too. */
    BK_MAILDIR_TOGETHER = 4,
    /* Hours until a file in tmp/ is left over from a crash, as Maildir's page says. */
    BK_MAILDIR_STALE_H = 36,

    /* Of PBKDF2, for secrets made here: some 100 ms for whoever checks one, and for each guess of
       whoever has stolen the file. A client that uses SCRAM takes as long. */
    BK_SECRET_ITERATIONS = 100000,
    /* The least that RFC 7677 allows; and more than anybody waits for. */
    BK_SECRET_ITERATIONS_MIN = 4096,
    BK_SECRET_ITERATIONS_MAX = 10000000,
    /* Bytes: no longer one comes through a line of AUTH. */
    BK_SECRET_PASSWORD_MAX = 1024,
    /* Bytes of a file of users: 100,000 of them. It is read again while a server runs. */
    BK_USERS_FILE_MAX = 16 * 1024 * 1024,
    BK_USERS_NAME_MAX = 255,
    /* Passwords that a loop's workers check at once: each is a processor's work, and half of the
       workers are left for disks. */
    BK_USERS_CHECKS = 2,
    /* … and that wait for that: seconds, for the last. */
    BK_USERS_WAITING = 64,
};

#endif
