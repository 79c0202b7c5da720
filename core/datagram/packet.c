/*
 * packet.c: datagrams that wait: to be sent, or to be told. Each is one piece of memory, with its
 * address; freed ones are kept by the loop for reuse. Called by datagram.c.
 */
#include "core/datagram/datagram.h"

enum { USUAL_ROOM = BK_PACKET_BYTES - offsetof(bk_packet, bytes) };

static bk_packet *alloc_packet(bk_loop *loop, size_t room) {
    bk_packet *packet = loop->free_packets;
    if (room <= USUAL_ROOM && packet != NULL) {
        loop->free_packets = packet->next;
        loop->free_packet_count--;
        return packet;
    }
    if (room < USUAL_ROOM)
        room = USUAL_ROOM;
    packet = bk_alloc(loop->os, offsetof(bk_packet, bytes) + room);
    if (packet != NULL)
        packet->room = (unsigned)room;
    return packet;
}

/* On failure the bytes are not released: they are still the caller's. */
bk_packet *bk_packet_new(bk_loop *loop, const bk_message *m, bk_release release, void *arg) {
    bool copy = release == BK_COPY;
    bk_packet *packet = alloc_packet(loop, m->address_size + (copy ? m->size : 0));
    if (packet == NULL)
        return NULL;
    packet->next = NULL;
    packet->size = m->size;
    packet->address_size = m->address_size;
    if (m->address_size > 0)
        memcpy(packet->bytes, m->address, m->address_size);
    packet->data = copy ? packet->bytes + m->address_size : m->data;
    packet->release = copy ? bk_release_static : release;
    packet->arg = arg;
    if (copy && m->size > 0)
        memcpy(packet->bytes + m->address_size, m->data, m->size);
    return packet;
}

/* It is freed before its bytes are released: that may do anything. */
void bk_packet_free(bk_loop *loop, bk_packet *packet) {
    bk_release release = packet->release;
    void *arg = packet->arg;
    if (packet->room != USUAL_ROOM || loop->free_packet_count >= BK_PACKETS_KEPT) {
        bk_dealloc(loop->os, packet);
    } else {
        packet->next = loop->free_packets;
        loop->free_packets = packet;
        loop->free_packet_count++;
    }
    release(arg);
}

void bk_packets_init(bk_packets *queue) {
    *queue = (bk_packets){.head = NULL, .tail = &queue->head};
}

void bk_packets_add(bk_packets *queue, bk_packet *packet) {
    *queue->tail = packet;
    queue->tail = &packet->next;
    queue->count++;
}

/* The first n (> 0) of the queue, as a list that ends with NULL. */
bk_packet *bk_packets_take(bk_packets *queue, uint32_t n) {
    bk_packet *first = queue->head, **end = &queue->head;
    queue->count -= n;
    while (n-- > 0)
        end = &(*end)->next;
    queue->head = *end;
    *end = NULL;
    if (queue->head == NULL)
        queue->tail = &queue->head;
    return first;
}

/* Those that can be sent in one call. One to the peer of a connected socket goes alone: that an
   earlier one was refused is told to the next, and is lost if that was not the first of a call. */
int bk_packets_gather(const bk_packets *queue, bk_message *ret_messages, uint32_t room) {
    int n = 0;
    for (bk_packet *p = queue->head; p != NULL && (uint32_t)n < room; p = p->next) {
        if (p->address_size == 0 && n > 0)
            break;
        ret_messages[n++] = (bk_message){.data = (void *)(uintptr_t)p->data,
                                         .size = p->size,
                                         .address = (struct sockaddr *)(void *)p->bytes,
                                         .address_size = p->address_size};
        if (p->address_size == 0)
            break;
    }
    return n;
}

void bk_packets_free_kept(bk_loop *loop) {
    while (loop->free_packets != NULL) {
        bk_packet *packet = loop->free_packets;
        loop->free_packets = packet->next;
        bk_dealloc(loop->os, packet);
    }
    loop->free_packet_count = 0;
}
