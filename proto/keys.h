/**
 * Keys: their text, their files, and the directory that `--keys DIR` names.
 *
 * A key is 32 bytes of Curve25519, written as 40 characters of Z85 (ZeroMQ RFC 32). A key file has one key a line,
 *
 *   # comment
 *   public gpu1 rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7
 *
 * with the word `secret` in place of `public` in a file that must stay where it is: such a file is refused when its
 * group or anyone else can read it. Because both have a word in front, neither is taken for the other, and a public
 * file can be appended to an allow list as it is.
 *
 * A role's directory holds exactly what that role needs; docs/keys.md says which file goes where.
 *
 *   coordinator   secret, workers.allow, clients.allow
 *   worker        secret, coordinator.public, workers.allow
 *   client        secret, coordinator.public
 */
#ifndef ESP_PROTO_KEYS_H
#define ESP_PROTO_KEYS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/status.h"
#include "proto/wire.h"

#define ESP_KEY_BYTES    32
#define ESP_KEY_TEXT     40         /* characters, without the NUL */
#define ESP_KEY_FILE_MAX (1u << 20) /* bytes */
#define ESP_KEYS_A_FILE  4096
#define ESP_FILE_SECRET  "secret"
#define ESP_FILE_SERVER  "coordinator.public"
#define ESP_FILE_WORKERS "workers.allow"
#define ESP_FILE_CLIENTS "clients.allow"

enum esp_member {
    ESP_MEMBER_NONE = 0, /* no keys: who can connect may say anything */
    ESP_MEMBER_COORDINATOR,
    ESP_MEMBER_WORKER,
    ESP_MEMBER_CLIENT
};

/** "coordinator", "worker", "client"; "nobody" for the rest. */
const char *esp_member_name(enum esp_member role);

/* ---- one key ---- */

/** Z85 of a key, NUL-terminated. */
void esp_key_format(char out[ESP_KEY_TEXT + 1], const uint8_t key[ESP_KEY_BYTES]);

/** The key that n characters of Z85 spell; false, with *out zeroed, if they spell none. */
bool esp_key_parse(uint8_t out[ESP_KEY_BYTES], const char *text, size_t n);

bool esp_key_equal(const uint8_t *a, const uint8_t *b);

/** A new pair. Errors: ESP_E_INTERNAL (no randomness to be had). */
esp_status esp_key_pair_make(uint8_t public_key[ESP_KEY_BYTES], uint8_t secret[ESP_KEY_BYTES],
                             struct esp_err *err);

/** The public key that belongs to a secret one. Errors: ESP_E_FORMAT (it is none). */
esp_status esp_key_public(uint8_t public_key[ESP_KEY_BYTES], const uint8_t secret[ESP_KEY_BYTES],
                          struct esp_err *err);

/** True for 1 to 63 of [A-Za-z0-9._-] that do not begin with a dot or a dash: it becomes the name of a folder. */
bool esp_key_name_ok(const char *name);

/* ---- lists and files ---- */

struct esp_key_entry {
    char name[ESP_MAX_NAME + 1];
    uint8_t key[ESP_KEY_BYTES];
};

struct esp_key_list {
    struct esp_key_entry *at;
    uint32_t n;
};

/** Overwrites what is secret, frees, clears. A zeroed list is fine. */
void esp_key_list_finish(struct esp_key_list *list);

/** The entry with that name or key, or NULL. */
const struct esp_key_entry *esp_key_list_named(const struct esp_key_list *list, const char *name);
const struct esp_key_entry *esp_key_list_find(const struct esp_key_list *list,
                                              const uint8_t key[ESP_KEY_BYTES]);

/** Appends. Errors: ESP_E_ARG (that name or key is there already), ESP_E_LIMIT, ESP_E_NOMEM. */
esp_status esp_key_list_add(struct esp_key_list *list, const char *name, const uint8_t key[ESP_KEY_BYTES],
                            struct esp_err *err);

/**
 * The keys in n bytes of text.
 *
 * @param out     esp_key_list_finish it; zeroed on failure
 * @param secret  whether the lines are to say `secret` or `public`
 * Errors: ESP_E_FORMAT (the line, and what is wrong with it), ESP_E_LIMIT, ESP_E_NOMEM.
 */
esp_status esp_key_list_parse(struct esp_key_list *out, const void *text, size_t n, bool secret,
                              struct esp_err *err);

/** The keys of a file. Errors: as parsing, ESP_E_IO; ESP_E_ARG for a secret that others can read. */
esp_status esp_key_file_read(struct esp_key_list *out, const char *path, bool secret, struct esp_err *err);

/**
 * Writes a file in one piece (a new one, renamed over what is there), mode 0600 if secret, else 0644.
 * @param comment  one line of words, without the #
 */
esp_status esp_key_file_write(const char *path, const struct esp_key_list *list, bool secret,
                              const char *comment, struct esp_err *err);

/* ---- a role's directory ---- */

struct esp_keys {
    enum esp_member member;
    char dir[1024];
    char name[ESP_MAX_NAME + 1]; /* as the key is called */
    uint8_t secret[ESP_KEY_BYTES], public_key[ESP_KEY_BYTES];
    uint8_t coordinator[ESP_KEY_BYTES];   /* its public key; our own in the coordinator */
    struct esp_key_list workers, clients; /* who may connect to us; the lists that the role has */
};

/** Reads a role's directory. Errors: as esp_key_file_read. */
esp_status esp_keys_open(struct esp_keys **out, const char *dir, enum esp_member role, struct esp_err *err);
void esp_keys_destroy(struct esp_keys **keys);

/**
 * A routing id for our connection that nobody else can guess and that stays the same from start to start, so that a
 * worker which comes back takes the place of its old connection, and no one else can: "NAME/" and 16 hex digits.
 * @param name  what the peer is called, at most ESP_MAX_NAME bytes
 */
void esp_keys_identity(char out[ESP_MAX_NAME + 18], const struct esp_keys *keys, const char *name);

#endif
