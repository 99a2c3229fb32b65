#include "coordinator/cut.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define ENC_ROLES (ESP_ROLE_PATCH | ESP_ROLE_PROJECTOR)
#define DEC_ROLES (ESP_ROLE_EMBED | ESP_ROLE_HEAD)
#define N_MASK    16

static double enc_load(const struct esp_cut_problem *p, uint32_t w, const struct esp_cut *c)
{
    const struct esp_cut_worker *v = &p->worker[w];
    double s = c->n_enc * v->enc_seconds;

    if (c->roles & ESP_ROLE_PATCH)
        s += v->role_seconds[0];
    if (c->roles & ESP_ROLE_PROJECTOR)
        s += v->role_seconds[1];
    return s;
}

static double dec_load(const struct esp_cut_problem *p, uint32_t w, const struct esp_cut *c)
{
    const struct esp_cut_worker *v = &p->worker[w];
    double s = c->n_dec * v->dec_seconds;

    if (c->roles & ESP_ROLE_EMBED)
        s += v->role_seconds[2];
    if (c->roles & ESP_ROLE_HEAD)
        s += v->role_seconds[3];
    return s;
}

double esp_cut_load(const struct esp_cut_problem *p, uint32_t w, const struct esp_cut *c)
{
    return enc_load(p, w, c) + dec_load(p, w, c);
}

uint64_t esp_cut_bytes(const struct esp_cut_problem *p, const struct esp_cut *c)
{
    uint64_t n = c->n_enc * p->enc_bytes + c->n_dec * p->dec_bytes;

    for (uint32_t bit = 0; bit < 4; bit++)
        if (c->roles >> bit & 1)
            n += p->role_bytes[bit];
    if (c->roles & DEC_ROLES)
        n += p->table_bytes;
    return n + (c->n_enc ? p->enc_stage_bytes : 0) + (c->n_dec ? p->dec_stage_bytes : 0);
}

bool esp_cut_fits(const struct esp_cut_problem *p, uint32_t w, const struct esp_cut *c)
{
    const struct esp_cut_worker *v = &p->worker[w];

    return !(c->n_enc && v->no_enc) && !(c->n_dec && v->no_dec) && !(c->roles & DEC_ROLES && v->no_table) &&
           esp_cut_bytes(p, c) <= v->memory_bytes;
}

/* ---- the exact optimum ---- */

struct choice {
    uint16_t n_enc;
    uint8_t roles;
};

struct search {
    const struct esp_cut_problem *p;
    int32_t *most; /* [N_MASK][E+1]: most decoder layers of the worker at hand, -1: impossible */
    uint32_t lo[N_MASK], hi[N_MASK]; /* per role set: encoder counts worth trying, [lo, hi) */
    int32_t *now, *then;             /* [N_MASK][E+1]: most decoder layers so far, -1: unreachable */
    struct choice *choice;           /* [W][N_MASK][E+1] */
    struct esp_cut *cut;             /* [W]: the last feasible cut */
};

/* Fewest layers of a tower that a worker with these of its roles must have. */
static uint32_t least(uint32_t roles, uint32_t tower, uint32_t n_layer)
{
    roles &= tower;
    return roles == 0 ? 0 : roles == tower ? n_layer : 1;
}

/* Most decoder layers of worker w beside n_enc encoder layers and the roles, by bound and memory. */
static int32_t most_dec(const struct esp_cut_problem *p, uint32_t w, uint32_t n_enc, uint32_t roles,
                        double bound)
{
    struct esp_cut c = {.n_enc = n_enc, .roles = roles, .n_dec = least(roles, DEC_ROLES, p->n_dec)};
    uint32_t low = c.n_dec, high = p->n_dec;

    if (p->n_dec == 1 && c.roles & DEC_ROLES && (c.roles & DEC_ROLES) != DEC_ROLES)
        return -1; /* one layer has no two ends */
    if (esp_cut_load(p, w, &c) > bound || !esp_cut_fits(p, w, &c))
        return -1;
    while (low < high) { /* invariant: low is possible */
        c.n_dec = (low + high + 1) / 2;
        if (esp_cut_load(p, w, &c) > bound || !esp_cut_fits(p, w, &c))
            high = c.n_dec - 1;
        else
            low = c.n_dec;
    }
    return (int32_t)low;
}

static void fill_most(struct search *s, uint32_t w, double bound)
{
    const struct esp_cut_problem *p = s->p;

    for (uint32_t r = 0; r < N_MASK; r++) {
        int32_t *row = s->most + (size_t)r * (p->n_enc + 1);
        uint32_t n = least(r, ENC_ROLES, p->n_enc);
        s->lo[r] = n;
        for (; n <= p->n_enc; n++) { /* grows no better with n: stop at the first that is impossible */
            row[n] = most_dec(p, w, n, r, bound);
            if (row[n] < 0)
                break;
        }
        s->hi[r] = n;
    }
}

/* Walks the choices back, then takes away what is too many decoder layers, from the busiest first. */
static void rebuild(struct search *s, double bound)
{
    const struct esp_cut_problem *p = s->p;
    uint32_t mask = N_MASK - 1, enc = p->n_enc, dec = 0;

    for (uint32_t w = p->n_worker; w-- > 0;) {
        const struct choice *c = &s->choice[((size_t)w * N_MASK + mask) * (p->n_enc + 1) + enc];
        s->cut[w] = (struct esp_cut){.n_enc = c->n_enc, .roles = c->roles};
        s->cut[w].n_dec = (uint32_t)most_dec(p, w, c->n_enc, c->roles, bound);
        dec += s->cut[w].n_dec;
        mask &= ~(uint32_t)c->roles;
        enc -= c->n_enc;
    }
    for (; dec > p->n_dec; dec--) {
        uint32_t most = 0;
        double most_load = -1.0;
        for (uint32_t w = 0; w < p->n_worker; w++) {
            const struct esp_cut *c = &s->cut[w];
            double load = esp_cut_load(p, w, c);
            if (c->n_dec > least(c->roles, DEC_ROLES, p->n_dec) && load > most_load) {
                most = w;
                most_load = load;
            }
        }
        s->cut[most].n_dec--;
    }
}

/* Whether some cut keeps every load at or below the bound; if so it is in s->cut. */
static bool feasible(struct search *s, double bound)
{
    const struct esp_cut_problem *p = s->p;
    const uint32_t E = p->n_enc, row = E + 1;
    const int32_t D = (int32_t)p->n_dec;

    for (size_t i = 0; i < (size_t)N_MASK * row; i++)
        s->now[i] = -1;
    s->now[0] = 0;
    for (uint32_t w = 0; w < p->n_worker; w++) {
        struct choice *choice = s->choice + (size_t)w * N_MASK * row;
        int32_t *swap;
        fill_most(s, w, bound);
        for (size_t i = 0; i < (size_t)N_MASK * row; i++)
            s->then[i] = -1;
        for (uint32_t m = 0; m < N_MASK; m++) {
            const int32_t *from = s->now + (size_t)m * row;
            const uint32_t rest = (N_MASK - 1) & ~m;
            for (uint32_t r = rest;; r = (r - 1) & rest) { /* every subset of the roles not yet given out */
                int32_t *to = s->then + (size_t)(m | r) * row;
                struct choice *why = choice + (size_t)(m | r) * row;
                const int32_t *most = s->most + (size_t)r * row;
                for (uint32_t n = s->lo[r]; n < s->hi[r]; n++) {
                    for (uint32_t e = 0; e + n <= E; e++) {
                        int32_t d = from[e] + most[n];
                        if (from[e] < 0)
                            continue;
                        if (d > D)
                            d = D;
                        if (d > to[e + n]) {
                            to[e + n] = d;
                            why[e + n] = (struct choice){.n_enc = (uint16_t)n, .roles = (uint8_t)r};
                        }
                    }
                }
                if (r == 0)
                    break;
            }
        }
        swap = s->now;
        s->now = s->then;
        s->then = swap;
    }
    if (s->now[(size_t)(N_MASK - 1) * row + E] < D)
        return false;
    rebuild(s, bound);
    return true;
}

static double largest_load(const struct esp_cut_problem *p, const struct esp_cut *cut)
{
    double most = 0.0;

    for (uint32_t w = 0; w < p->n_worker; w++) {
        double load = esp_cut_load(p, w, &cut[w]);
        if (load > most)
            most = load;
    }
    return most;
}

/* What no cut can beat: either tower shared out in fractions of layers, each worker giving all its time. */
static double work_bound(const struct esp_cut_problem *p)
{
    double enc_rate = 0.0, dec_rate = 0.0, head = INFINITY;

    for (uint32_t w = 0; w < p->n_worker; w++) {
        enc_rate +=
            1.0 / p->worker[w].enc_seconds; /* layers a second; infinite for a free layer: a bound of 0 */
        dec_rate += 1.0 / p->worker[w].dec_seconds;
        head = fmin(head, p->worker[w].role_seconds[3]);
    }
    return fmax(head, fmax(p->n_enc / enc_rate, p->n_dec / dec_rate)) * (1.0 - 1e-9);
}

/* ---- the tie-break ---- */

/* Seconds of either tower on the fastest worker: what a share of it is measured by. */
struct scale {
    double enc, dec;
};

/* What polishing keeps to, and what it goes by. */
struct limits {
    double bound; /* of every load */
    struct scale scale;
};

static struct scale scale_of(const struct esp_cut_problem *p)
{
    struct scale s = {INFINITY, INFINITY};

    for (uint32_t w = 0; w < p->n_worker; w++) {
        const struct esp_cut enc = {.n_enc = p->n_enc, .roles = ENC_ROLES},
                             dec = {.n_dec = p->n_dec, .roles = DEC_ROLES};
        s.enc = fmin(s.enc, enc_load(p, w, &enc));
        s.dec = fmin(s.dec, dec_load(p, w, &dec));
    }
    s.enc = fmax(s.enc, 1e-30);
    s.dec = fmax(s.dec, 1e-30);
    return s;
}

/* What polishing lowers, worker by worker: shares of the whole and of each tower, squared. */
static double goal(const struct esp_cut_problem *p, const struct scale *scale, uint32_t w,
                   const struct esp_cut *c)
{
    double e = enc_load(p, w, c), d = dec_load(p, w, c), all = (e + d) / (scale->enc + scale->dec);
    e /= scale->enc;
    d /= scale->dec;
    return 2.0 * all * all + e * e + d * d;
}

/*
 * After layers of one tower moved between two workers: an emptied one hands its roles on; one that had both
 * ends and no longer has the whole tower hands one of them over, which one says `flip`. False if the ends
 * cannot be held so.
 */
static bool settle(uint32_t tower, uint32_t n_layer, uint32_t n_a, uint32_t n_b, uint32_t *a, uint32_t *b,
                   bool flip)
{
    uint32_t ra = *a & tower, rb = *b & tower, both = ra | rb, low = tower & (~tower + 1);

    if (n_a == 0) {
        ra = 0;
        rb = both;
    } else if (n_b == 0) {
        ra = both;
        rb = 0;
    } else if (ra == tower || rb == tower) {
        ra = flip ? tower & ~low : low;
        rb = tower & ~ra;
    } else if (flip) {
        return false; /* the same as without */
    }
    *a = (*a & ~tower) | ra;
    *b = (*b & ~tower) | rb;
    return (ra != tower || n_a == n_layer) && (rb != tower || n_b == n_layer) && (ra == 0 || n_a) &&
           (rb == 0 || n_b);
}

/* Takes the shares a of worker i and b of worker j if they are within the bounds and better. */
static bool accept(const struct esp_cut_problem *p, struct esp_cut *cut, uint32_t i, uint32_t j,
                   struct esp_cut a, struct esp_cut b, const struct limits *lim)
{
    double old = goal(p, &lim->scale, i, &cut[i]) + goal(p, &lim->scale, j, &cut[j]);

    if (!(goal(p, &lim->scale, i, &a) + goal(p, &lim->scale, j, &b) < old * (1.0 - 1e-9)))
        return false;
    if (esp_cut_load(p, i, &a) > lim->bound || esp_cut_load(p, j, &b) > lim->bound ||
        !esp_cut_fits(p, i, &a) || !esp_cut_fits(p, j, &b))
        return false;
    cut[i] = a;
    cut[j] = b;
    return true;
}

/* n_enc layers from i to j, and n_dec decoder layers too, or back from j to i where it is negative. */
static bool try_move(const struct esp_cut_problem *p, struct esp_cut *cut, uint32_t i, uint32_t j,
                     int64_t n_enc, int64_t n_dec, const struct limits *lim)
{
    int64_t ae = cut[i].n_enc - n_enc, ad = cut[i].n_dec - n_dec, be = cut[j].n_enc + n_enc,
            bd = cut[j].n_dec + n_dec;

    if (ae < 0 || ad < 0 || be < 0 || bd < 0)
        return false;
    for (uint32_t flip = 0; flip < 4; flip++) {
        struct esp_cut a = {.n_enc = (uint32_t)ae, .n_dec = (uint32_t)ad, .roles = cut[i].roles};
        struct esp_cut b = {.n_enc = (uint32_t)be, .n_dec = (uint32_t)bd, .roles = cut[j].roles};
        if (settle(ENC_ROLES, p->n_enc, a.n_enc, b.n_enc, &a.roles, &b.roles, flip & 1) &&
            settle(DEC_ROLES, p->n_dec, a.n_dec, b.n_dec, &a.roles, &b.roles, flip & 2) &&
            accept(p, cut, i, j, a, b, lim))
            return true;
    }
    return false;
}

/* One of i's roles to j, or their ends of a tower exchanged. */
static bool try_roles(const struct esp_cut_problem *p, struct esp_cut *cut, uint32_t i, uint32_t j,
                      const struct limits *lim)
{
    static const uint32_t towers[] = {ENC_ROLES, DEC_ROLES};

    for (uint32_t t = 0; t < 2; t++) {
        struct esp_cut a = cut[i], b = cut[j];
        uint32_t ra = a.roles & towers[t], rb = b.roles & towers[t];
        if (!(t ? a.n_dec && b.n_dec : a.n_enc && b.n_enc) || ra == 0)
            continue;
        a.roles = (a.roles & ~towers[t]) | rb;
        b.roles = (b.roles & ~towers[t]) | ra;
        if (accept(p, cut, i, j, a, b, lim))
            return true;
    }
    return false;
}

static bool improve_pair(const struct esp_cut_problem *p, struct esp_cut *cut, uint32_t i, uint32_t j,
                         const struct limits *lim)
{
    const struct esp_cut_worker *v = &p->worker[i];
    bool better = false;

    if (cut[i].n_enc == 0 && cut[i].n_dec == 0)
        return false;
    better |= try_roles(p, cut, i, j, lim);
    better |= try_move(p, cut, i, j, cut[i].n_enc, 0, lim);
    better |= try_move(p, cut, i, j, 0, cut[i].n_dec, lim);
    for (int64_t n = 1; n <= (int64_t)cut[i].n_enc || n <= (int64_t)cut[i].n_dec; n *= 2) {
        int64_t in_exchange =
            v->dec_seconds > 0.0 ? (int64_t)fmin((double)n * v->enc_seconds / v->dec_seconds, 1e6) : 0;
        better |= try_move(p, cut, i, j, n, 0, lim);
        better |= try_move(p, cut, i, j, 0, n, lim);
        better |= try_move(p, cut, i, j, n, -in_exchange, lim);
        better |= try_move(p, cut, i, j, n, -in_exchange - 1, lim);
    }
    return better;
}

static void polish(const struct esp_cut_problem *p, struct esp_cut *cut, const struct limits *lim)
{
    bool better = true;

    for (uint32_t sweep = 0; better && sweep < 100;
         sweep++) { /* the goal falls each time; 100 bounds the time */
        better = false;
        for (uint32_t i = 0; i < p->n_worker; i++)
            for (uint32_t j = 0; j < p->n_worker; j++)
                if (i != j)
                    better |= improve_pair(p, cut, i, j, lim);
    }
}

/* Image features need no hop where the last encoder stage is the first decoder stage: arrange it if it costs
 * nothing. */
static void join_towers(const struct esp_cut_problem *p, struct esp_cut *cut, double bound)
{
    for (uint32_t w = 0; w < p->n_worker; w++)
        if ((cut[w].roles & (ESP_ROLE_PROJECTOR | ESP_ROLE_EMBED)) == (ESP_ROLE_PROJECTOR | ESP_ROLE_EMBED))
            return;
    for (uint32_t w = 0; w < p->n_worker; w++) {
        struct esp_cut mine = cut[w];
        bool fine = mine.n_enc && mine.n_dec && !(mine.roles & ESP_ROLE_HEAD);
        if (!fine)
            continue;
        /* Whoever has the two roles now gives them up; a patch embedding of w's goes the other way. */
        mine.roles |= ESP_ROLE_PROJECTOR | ESP_ROLE_EMBED;
        if (mine.n_enc != p->n_enc)
            mine.roles &= ~(uint32_t)ESP_ROLE_PATCH;
        fine = esp_cut_fits(p, w, &mine) && esp_cut_load(p, w, &mine) <= bound;
        for (uint32_t v = 0; fine && v < p->n_worker; v++) {
            struct esp_cut other = cut[v];
            if (v == w)
                continue;
            if (other.roles & ESP_ROLE_PROJECTOR && !(mine.roles & ESP_ROLE_PATCH) &&
                cut[w].roles & ESP_ROLE_PATCH)
                other.roles |= ESP_ROLE_PATCH;
            other.roles &= ~(uint32_t)(ESP_ROLE_PROJECTOR | ESP_ROLE_EMBED);
            fine = esp_cut_fits(p, v, &other) && esp_cut_load(p, v, &other) <= bound;
        }
        if (!fine)
            continue;
        for (uint32_t v = 0; v < p->n_worker; v++) {
            if (v == w)
                continue;
            if (cut[v].roles & ESP_ROLE_PROJECTOR && !(mine.roles & ESP_ROLE_PATCH) &&
                cut[w].roles & ESP_ROLE_PATCH)
                cut[v].roles |= ESP_ROLE_PATCH;
            cut[v].roles &= ~(uint32_t)(ESP_ROLE_PROJECTOR | ESP_ROLE_EMBED);
        }
        cut[w] = mine;
        return;
    }
}

/* Place along the pipeline, so that alike workers get their shares in its order. */
static uint32_t place_of(const struct esp_cut *c)
{
    if (c->n_enc)
        return c->roles & ESP_ROLE_PATCH ? 0 : c->roles & ESP_ROLE_PROJECTOR ? 2 : 1;
    if (c->n_dec)
        return c->roles & ESP_ROLE_EMBED ? 3 : c->roles & ESP_ROLE_HEAD ? 5 : 4;
    return 6;
}

static bool alike(const struct esp_cut_worker *a, const struct esp_cut_worker *b)
{
    for (uint32_t bit = 0; bit < 4; bit++)
        if (a->role_seconds[bit] != b->role_seconds[bit])
            return false;
    return a->memory_bytes == b->memory_bytes && a->no_enc == b->no_enc && a->no_dec == b->no_dec &&
           a->no_table == b->no_table && a->enc_seconds == b->enc_seconds && a->dec_seconds == b->dec_seconds;
}

static void line_up(const struct esp_cut_problem *p, struct esp_cut *cut)
{
    for (uint32_t i = 0; i < p->n_worker; i++)
        for (uint32_t j = i + 1; j < p->n_worker; j++)
            if (place_of(&cut[j]) < place_of(&cut[i]) && alike(&p->worker[i], &p->worker[j])) {
                struct esp_cut t = cut[i];
                cut[i] = cut[j];
                cut[j] = t;
            }
}

esp_status esp_cut_search(struct esp_cut *out, bool *fits, double *best, const struct esp_cut_problem *p,
                          struct esp_err *err)
{
    esp_status st = ESP_OK;
    const size_t n_state = (size_t)N_MASK * (p->n_enc + 1);
    struct search s = {.p = p};
    double low = 0.0, high, bound;

    *fits = false;
    s.most = calloc(n_state, sizeof *s.most);
    s.now = calloc(n_state, sizeof *s.now);
    s.then = calloc(n_state, sizeof *s.then);
    s.choice = calloc(n_state * p->n_worker, sizeof *s.choice);
    s.cut = calloc(p->n_worker, sizeof *s.cut);
    if (!s.most || !s.now || !s.then || !s.choice || !s.cut) {
        st = esp_fail(err, ESP_E_NOMEM, "placing layers on %u workers", p->n_worker);
        goto done;
    }
    low = work_bound(p);
    for (int i = 0; i < 4 && low > 0.0 && !*fits;
         i++) { /* a tight bound tries few counts: without one last */
        *fits = feasible(&s, 2.0 * low);
        if (!*fits)
            low *= 2.0;
    }
    *fits = *fits || feasible(&s, INFINITY);
    if (!*fits)
        goto done;
    memcpy(out, s.cut, p->n_worker * sizeof *out);
    high = largest_load(p, out);
    while (high - low > 1e-9 * high) { /* high is always the largest load of a cut in hand */
        double mid = low + (high - low) / 2;
        if (feasible(&s, mid)) {
            memcpy(out, s.cut, p->n_worker * sizeof *out);
            high = largest_load(p, out);
        } else {
            low = mid;
        }
    }
    if (best)
        *best = high;
    bound = high * (1.0 + p->slack);
    polish(p, out, &(struct limits){.bound = bound, .scale = scale_of(p)});
    join_towers(p, out, bound);
    line_up(p, out);
done:
    free(s.most);
    free(s.now);
    free(s.then);
    free(s.choice);
    free(s.cut);
    return st;
}
