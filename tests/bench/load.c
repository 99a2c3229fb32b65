/*
 * bench-load: how long a worker takes from a checkpoint's files to a stage of all its layers that is ready, beside
 * `cat` of the same files to /dev/null, and copying them into fresh memory of huge pages on as many cores (on a CPU driver the
 * device's memory is that). The three take turns; the table has every turn, then medians, then
 * the shares of both rates that loading reaches.
 *
 * cat touches no memory but the page cache. In a virtual machine whose host takes free memory back, each page of fresh memory
 * costs a fault of the host, microseconds for 4 KiB, and that is most of what copying and loading take.
 *
 * Usage: bench-load [--cold] [--turns N] [--device D] [--weights T] [--packed DIR [--all]] MODEL_DIR
 *   --cold     drops the files from the page cache before each of the three
 *   --weights  what the device holds: stored (the default), bf16, f16, f32, q8, q4
 *   --packed   keeps quantised matrices there: the first turn quantises, the others have them
 *   --all      there, matrices that are not quantised, too
 */
#include <fcntl.h>
#include <getopt.h>
#include <glob.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "proto/clock.h"
#include "model/file.h"
#include "tests/support/chain.h"
#include "worker/packed.h"
#include "worker/pool.h"

#define MAX_TURNS  32
#define MAX_ROWS   64
#define MAX_FILES  64
#define COPY_BYTES ((size_t)1 << 20)

struct turn {
    double copy, cat, open, hash, load;
    double copy_cpu, cat_cpu,
        load_cpu; /* seconds of processor, which other work on the machine does not stretch */
};

static double cpu_seconds(int who)
{
    struct rusage u;

    if (getrusage(who, &u) != 0)
        return 0;
    return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
           1e-6 * (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec);
}

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

/* ---- what loading is held against ---- */

/* A file and where it goes. */
struct part {
    const char *from;
    char *to;
    size_t n_bytes;
};

struct copy {
    struct part *part;
    size_t n_part;
    atomic_size_t next;
};

static void *copy_parts(void *arg)
{
    struct copy *c = arg;

    for (size_t i; (i = atomic_fetch_add(&c->next, 1)) < c->n_part;)
        memcpy(c->part[i].to, c->part[i].from, c->part[i].n_bytes);
    return NULL;
}

/* All files into fresh memory of huge pages, a MiB at a time by as many threads as there are cores. */
static double time_copy(const glob_t *files, uint64_t n_bytes)
{
    const uint32_t n = esp_pool_cores();
    struct copy c = {.part = calloc(n_bytes / COPY_BYTES + files->gl_pathc, sizeof *c.part)};
    pthread_t thread[ESP_POOL_MAX];
    double start = esp_now_seconds();
    char *memory = mmap(NULL, n_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0),
         *to = memory;
    const void *map[MAX_FILES];
    size_t n_map[MAX_FILES];
    struct esp_err err = {0};

    if (memory == MAP_FAILED || !c.part)
        fail("memory to copy to");
    (void)madvise(memory, n_bytes, MADV_HUGEPAGE);
    for (size_t i = 0; i < files->gl_pathc; i++) {
        esp_must(esp_file_map(&map[i], &n_map[i], NULL, files->gl_pathv[i], &err), &err);
        (void)posix_madvise((void *)(uintptr_t)map[i], n_map[i], POSIX_MADV_SEQUENTIAL);
        for (size_t at = 0; at < n_map[i]; at += COPY_BYTES) {
            const size_t left = n_map[i] - at, some = left < COPY_BYTES ? left : COPY_BYTES;
            c.part[c.n_part++] = (struct part){(const char *)map[i] + at, to, some};
            to += some;
        }
    }
    for (uint32_t i = 0; i < n; i++)
        if (pthread_create(&thread[i], NULL, copy_parts, &c) != 0)
            fail("pthread_create");
    for (uint32_t i = 0; i < n; i++)
        pthread_join(thread[i], NULL);
    start = esp_now_seconds() - start;
    for (size_t i = 0; i < files->gl_pathc; i++)
        esp_file_unmap(map[i], n_map[i]);
    munmap(memory, n_bytes);
    free(c.part);
    return start;
}

static double time_cat(const glob_t *files)
{
    char **argv = calloc(files->gl_pathc + 2, sizeof *argv);
    const double start = esp_now_seconds();
    pid_t pid;
    int status;

    if (!argv)
        fail("cat");
    argv[0] = "cat";
    for (size_t i = 0; i < files->gl_pathc; i++)
        argv[i + 1] = files->gl_pathv[i];
    pid = fork();
    if (pid == 0) {
        int null = open("/dev/null", O_WRONLY);
        if (null < 0 || dup2(null, 1) < 0)
            _exit(1);
        execvp("cat", argv);
        _exit(1);
    }
    if (pid < 0 || waitpid(pid, &status, 0) != pid || status != 0)
        fail("cat");
    free(argv);
    return esp_now_seconds() - start;
}

static void drop_files(const glob_t *files)
{
    for (size_t i = 0; i < files->gl_pathc; i++) {
        int fd = open(files->gl_pathv[i], O_RDONLY | O_CLOEXEC);

        if (fd < 0)
            fail(files->gl_pathv[i]);
        (void)fdatasync(fd); /* only clean pages can be dropped */
        if (posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED) != 0)
            fail("posix_fadvise");
        close(fd);
    }
}

static void drop_packed(const char *dir)
{
    char pattern[4096];
    glob_t files;

    snprintf(pattern, sizeof pattern, "%s/[0-9a-f][0-9a-f]/*", dir);
    if (glob(pattern, 0, NULL, &files) != 0)
        return; /* none yet */
    drop_files(&files);
    globfree(&files);
}

/* ---- loading ---- */

static void time_load(struct turn *t, struct esp_vk *vk, const char *dir, enum esp_wtype weights)
{
    uint8_t fingerprint[ESP_FINGERPRINT_BYTES];
    struct esp_checkpoint *ck;
    struct esp_shelf *shelf;
    struct esp_stage *stage;
    struct esp_stage_spec spec = {.patch = true,
                                  .projector = true,
                                  .embed = true,
                                  .head = true,
                                  .max_rows = MAX_ROWS,
                                  .kv_tokens = MAX_ROWS,
                                  .max_seqs = 1,
                                  .max_images = 1,
                                  .weights = weights};
    struct esp_err err = {0};
    const double start = esp_now_seconds();
    double opened, hashed;

    esp_must(esp_checkpoint_open(&ck, dir, &err), &err);
    opened = esp_now_seconds();
    esp_checkpoint_fingerprint(ck, fingerprint);
    hashed = esp_now_seconds();
    spec.enc_hi = esp_checkpoint_config(ck)->vision.n_layer;
    spec.dec_hi = esp_checkpoint_config(ck)->text.n_layer;
    esp_must(esp_shelf_create(&shelf, vk, ck, NULL, NULL, &err), &err);
    esp_must(esp_stage_create(&stage, shelf, &spec, NULL, NULL, NULL, &err), &err);
    t->load = esp_now_seconds() - start;
    t->open = opened - start;
    t->hash = hashed - opened;
    esp_stage_destroy(&stage);
    esp_shelf_destroy(&shelf);
    esp_checkpoint_destroy(&ck);
}

/* ---- the table ---- */

static int compare(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

static double median(const struct turn *turns, int n, size_t offset)
{
    double v[MAX_TURNS];

    for (int i = 0; i < n; i++)
        memcpy(&v[i], (const char *)&turns[i] + offset, sizeof v[i]);
    qsort(v, (size_t)n, sizeof *v, compare);
    return n % 2 ? v[n / 2] : 0.5 * (v[n / 2 - 1] + v[n / 2]);
}

static void print_rate(double s, double cpu, double gb)
{
    printf("  %6.2f s %6.2f GB/s %6.2f s", s, gb / s, cpu);
}

static void print(const char *name, const struct turn *t, double gb)
{
    printf("%-6s", name);
    print_rate(t->cat, t->cat_cpu, gb);
    print_rate(t->copy, t->copy_cpu, gb);
    print_rate(t->load, t->load_cpu, gb);
    printf("  %6.3f s  %6.3f s\n", t->open, t->hash);
}

int main(int argc, char **argv)
{
    static const struct option options[] = {{"cold", no_argument, NULL, 'c'},
                                            {"turns", required_argument, NULL, 't'},
                                            {"device", required_argument, NULL, 'd'},
                                            {"weights", required_argument, NULL, 'w'},
                                            {"packed", required_argument, NULL, 'p'},
                                            {"all", no_argument, NULL, 'a'},
                                            {NULL, 0, NULL, 0}};
    struct turn turn[MAX_TURNS], m;
    const char *device = NULL, *packed = NULL;
    enum esp_wtype weights = ESP_W_STORED;
    char pattern[4096], name[16];
    bool cold = false, all = false;
    int c, n = 5;
    uint64_t n_bytes = 0;
    struct esp_err err = {0};
    struct esp_log log;
    struct esp_vk *vk;
    struct stat sb;
    glob_t files;
    double gb;

    while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
        if (c == 'c')
            cold = true;
        else if (c == 't')
            n = atoi(optarg);
        else if (c == 'd')
            device = optarg;
        else if (c == 'p')
            packed = optarg;
        else if (c == 'a')
            all = true;
        else if (c != 'w' || !esp_wtype_parse(&weights, optarg))
            return 2;
    }
    if (optind + 1 != argc || n < 1 || n > MAX_TURNS || (all && !packed)) {
        fprintf(stderr,
                "usage: bench-load [--cold] [--turns 1..%d] [--device D] [--weights T] [--packed DIR "
                "[--all]] MODEL_DIR\n",
                MAX_TURNS);
        return 2;
    }
    snprintf(pattern, sizeof pattern, "%s/*.safetensors", argv[optind]);
    if (glob(pattern, 0, NULL, &files) != 0 || files.gl_pathc > MAX_FILES)
        fail(pattern);
    for (size_t i = 0; i < files.gl_pathc; i++) {
        if (stat(files.gl_pathv[i], &sb) != 0)
            fail(files.gl_pathv[i]);
        n_bytes += (uint64_t)sb.st_size;
    }
    gb = 1e-9 * (double)n_bytes;
    esp_log_init(&log, "bench-load");
    log.level = ESP_LOG_WARN;
    esp_must(esp_vk_open(&vk, device, NULL, &log, &err), &err);
    if (packed)
        esp_must(esp_packed_open(&vk->packed, packed, 0, all, &log, &err), &err);
    printf("%.2f GB, %s, %s, %u threads, %s\n", gb, esp_vk_report(vk)->name, esp_vk_report(vk)->driver,
           esp_pool_cores(), cold ? "files not in memory" : "files in memory");
    printf("turn     cat                             copy                            load                    "
           "                     of it open  "
           "fingerprint\n");
    if (!cold)
        (void)time_cat(&files); /* brings them in */
    for (int i = 0; i < n; i++) {
        double cpu = cpu_seconds(RUSAGE_CHILDREN);

        if (cold)
            drop_files(&files);
        turn[i].cat = time_cat(&files);
        turn[i].cat_cpu = cpu_seconds(RUSAGE_CHILDREN) - cpu;
        if (cold)
            drop_files(&files);
        cpu = cpu_seconds(RUSAGE_SELF);
        turn[i].copy = time_copy(&files, n_bytes);
        turn[i].copy_cpu = cpu_seconds(RUSAGE_SELF) - cpu;
        if (cold) {
            drop_files(&files);
            if (packed)
                drop_packed(packed);
        }
        cpu = cpu_seconds(RUSAGE_SELF);
        time_load(&turn[i], vk, argv[optind], weights);
        turn[i].load_cpu = cpu_seconds(RUSAGE_SELF) - cpu;
        snprintf(name, sizeof name, "%d", i + 1);
        print(name, &turn[i], gb);
        fflush(stdout);
    }
#define MEDIAN(what) m.what = median(turn, n, offsetof(struct turn, what))
    MEDIAN(copy), MEDIAN(cat), MEDIAN(load), MEDIAN(open), MEDIAN(hash);
    MEDIAN(copy_cpu), MEDIAN(cat_cpu), MEDIAN(load_cpu);
#undef MEDIAN
    print("median", &m, gb);
    printf("load reaches %.2f of cat's rate, %.2f of that of a copy\n", m.cat / m.load, m.copy / m.load);
    esp_packed_destroy(&vk->packed);
    esp_vk_close(&vk);
    globfree(&files);
    return 0;
}
