/* A Linux guest's own account of its clocks: a static program without a C library, for arm64. docs/linux-guest.md
 * describes its commands and its lines.
 *
 *     guest-probe clocks          one line: each clock against CNTVCT_EL0, and the clocks against each other
 *     guest-probe watch [ms]      leaves a watcher on each CPU, which looks at all clocks every so many milliseconds
 *     guest-probe report          one line for each watcher: what it saw since the last report
 *     guest-probe vmclock PTP     one line: a PTP clock, as /dev/ptp0, and the vmclock page as its device shows it
 *     guest-probe set NS          sets CLOCK_REALTIME to so many nanoseconds since 1970
 *
 * Clocks are read through the vDSO, as programs read them, between two reads of the counter. CLOCK_MONOTONIC less the
 * counter is then known within an interval, and the intersection of many such intervals is as narrow as they come.
 */

typedef unsigned long u64;
typedef long s64;

/* arch/arm64's calls, by include/uapi/asm-generic/unistd.h. */
enum {
	NR_ftruncate = 46, NR_openat = 56, NR_close = 57, NR_read = 63, NR_write = 64, NR_timerfd_create = 85,
	NR_timerfd_settime = 86, NR_exit_group = 94, NR_nanosleep = 101, NR_clock_settime = 112, NR_clock_gettime = 113,
	NR_sched_setaffinity = 122, NR_setsid = 157, NR_clone = 220, NR_mmap = 222,
};

enum { REALTIME, MONOTONIC, CPUTIME, THREAD, RAW, CLOCK_COARSE, MONO_COARSE, BOOTTIME };

#define CPUS 8
#define READS 256
#define PTP_READS 16
#define PLACE "/tmp/guest-probe"

static s64 call(long nr, long a, long b, long c, long d, long e, long f)
{
	register long x8 __asm__("x8") = nr, x0 __asm__("x0") = a, x1 __asm__("x1") = b, x2 __asm__("x2") = c;
	register long x3 __asm__("x3") = d, x4 __asm__("x4") = e, x5 __asm__("x5") = f;

	__asm__ volatile("svc #0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5) : "memory");
	return x0;
}

static u64 counter(void)
{
	u64 value;

	__asm__ volatile("isb\n mrs %0, cntvct_el0\n isb" : "=r"(value) : : "memory");
	return value;
}

static u64 frequency(void)
{
	u64 value;

	__asm__("mrs %0, cntfrq_el0" : "=r"(value));
	return value;
}

/* Text: a line is put together and written at once. */
static char line[512];
static unsigned int length;

static void text(const char *s)
{
	while (*s && length < sizeof(line))
		line[length++] = *s++;
}

static void number(s64 value)
{
	char digits[24];
	int n = 0;
	u64 rest = value < 0 ? -(u64)value : (u64)value;

	if (value < 0)
		text("-");
	do {
		digits[n++] = '0' + rest % 10;
		rest /= 10;
	} while (rest);
	while (n && length < sizeof(line))
		line[length++] = digits[--n];
}

static void field(const char *name, s64 value)
{
	text(" ");
	text(name);
	text("=");
	number(value);
}

static void say(void)
{
	text("\n");
	call(NR_write, 1, (long)line, length, 0, 0, 0);
	length = 0;
}

static void fail(const char *what, s64 error)
{
	length = 0;
	text("guest-probe failed:");
	field(what, error);
	say();
	call(NR_exit_group, 1, 0, 0, 0, 0, 0);
	__builtin_unreachable();
}

static s64 checked(const char *what, s64 result)
{
	if (result < 0)
		fail(what, result);
	return result;
}

static int same(const char *a, const char *b)
{
	while (*a && *a == *b)
		a++, b++;
	return *a == *b;
}

static u64 parsed(const char *s)
{
	u64 value = 0;

	for (; *s >= '0' && *s <= '9'; s++)
		value = value * 10 + (*s - '0');
	return value;
}

/* The vDSO's clock_gettime, by the dynamic section of its ELF file. Newer kernels have no DT_HASH, which would give the
 * number of symbols: their table ends where that of the names begins (arch/arm64/kernel/vdso/vdso.lds.S).
 */
struct timespec { s64 s, ns; };
static int (*vdso_gettime)(int clock, struct timespec *out);

static void find_vdso(const char *image)
{
	const u64 phoff = *(const u64 *)(image + 32);
	const unsigned short phnum = *(const unsigned short *)(image + 56);
	const u64 *dynamic = 0;
	const char *names = 0, *symbols = 0;

	for (int i = 0; i < phnum; i++) {
		const char *header = image + phoff + i * 56;

		if (*(const unsigned int *)header == 2) /* PT_DYNAMIC; the vDSO is linked at address 0 */
			dynamic = (const u64 *)(image + *(const u64 *)(header + 16));
	}
	for (; dynamic && dynamic[0]; dynamic += 2) {
		if (dynamic[0] == 5) /* DT_STRTAB */
			names = image + dynamic[1];
		if (dynamic[0] == 6) /* DT_SYMTAB */
			symbols = image + dynamic[1];
	}
	for (const char *symbol = symbols; symbols && symbol < names; symbol += 24) {
		if (same(names + *(const unsigned int *)symbol, "__kernel_clock_gettime"))
			vdso_gettime = (int (*)(int, struct timespec *))(image + *(const u64 *)(symbol + 8));
	}
}

static s64 clock_ns(int clock)
{
	struct timespec now;

	if (vdso_gettime)
		vdso_gettime(clock, &now);
	else
		call(NR_clock_gettime, clock, (long)&now, 0, 0, 0, 0);
	return now.s * 1000000000 + now.ns;
}

static u64 to_ns(u64 ticks, u64 hz)
{
	/* Whole seconds apart from the rest, so that 64 bits do at any frequency of 32 bits. */
	return ticks / hz * 1000000000 + ticks % hz * 1000000000 / hz;
}

static void clocks(void)
{
	static const struct { const char *name; int clock; } every[] = {
		{ "monotonic", MONOTONIC }, { "boottime", BOOTTIME }, { "realtime", REALTIME }, { "raw", RAW },
	};
	const u64 hz = frequency();

	text("clocks");
	field("vdso", vdso_gettime != 0);
	field("hz", hz);
	for (unsigned int i = 0; i < 4; i++) {
		s64 low = -(s64)(~0UL >> 1), high = (s64)(~0UL >> 1), ns = 0;
		u64 before = 0, after = 0;

		for (int n = 0; n < READS; n++) {
			before = counter();
			ns = clock_ns(every[i].clock);
			after = counter();
			/* The clock was read at some count from `before` to `after`. */
			if (ns - (s64)to_ns(after, hz) > low)
				low = ns - (s64)to_ns(after, hz);
			if (ns - (s64)to_ns(before, hz) < high)
				high = ns - (s64)to_ns(before, hz);
		}
		text(" ");
		text(every[i].name);
		text("=");
		number(ns);
		text("@");
		number(before);
		text("..");
		number(after);
		text(",");
		number(low);
		text("..");
		number(high);
	}
	say();
}

/* One watcher's account, in memory that all of them share. */
struct watcher {
	u64 epoch, looks, back, back_ns, expired, most_expired, gap_ns, gap_from_ns, gap_from_count, gap_to_count, pad[6];
};
struct account {
	u64 epoch, period_ns;
	/* The latest that any watcher has read of each clock, and of the counter. */
	s64 latest[5];
	u64 pad;
	struct watcher watcher[CPUS];
};

static struct account *account(int create)
{
	const s64 file = checked("open", call(NR_openat, -100, (long)PLACE, create ? 0102 : 2, 0600, 0, 0));

	if (create)
		checked("ftruncate", call(NR_ftruncate, file, sizeof(struct account), 0, 0, 0, 0));
	return (struct account *)checked("mmap", call(NR_mmap, 0, sizeof(struct account), 3, 1, file, 0));
}

static void seen(struct watcher *w, s64 *latest, s64 was, s64 now)
{
	if (now < was) {
		w->back++;
		if ((u64)(was - now) > w->back_ns)
			w->back_ns = was - now;
	}
	/* Only forward, whoever comes first. */
	while (now > was && !__atomic_compare_exchange_n(latest, &was, now, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
		;
}

static void look_for_ever(struct account *all, int cpu)
{
	static const int clock[] = { MONOTONIC, BOOTTIME, REALTIME, RAW };
	struct watcher *w = &all->watcher[cpu];
	const struct { struct timespec interval, value; } every = {
		{ all->period_ns / 1000000000, all->period_ns % 1000000000 },
		{ all->period_ns / 1000000000, all->period_ns % 1000000000 },
	};
	const s64 timer = checked("timerfd_create", call(NR_timerfd_create, MONOTONIC, 0, 0, 0, 0, 0));
	s64 last_ns = clock_ns(MONOTONIC);
	u64 last_count = counter(), expired;

	checked("timerfd_settime", call(NR_timerfd_settime, timer, 0, (long)&every, 0, 0, 0));
	for (;;) {
		call(NR_read, timer, (long)&expired, sizeof(expired), 0, 0, 0);
		if (w->epoch != all->epoch) {
			w->looks = w->expired = w->most_expired = w->gap_ns = 0;
			w->epoch = all->epoch;
		}
		for (int i = 0; i < 4; i++) {
			const s64 was = __atomic_load_n(&all->latest[i], __ATOMIC_SEQ_CST);

			seen(w, &all->latest[i], was, clock_ns(clock[i]));
		}
		const s64 was = __atomic_load_n(&all->latest[4], __ATOMIC_SEQ_CST);
		const u64 count = counter();
		const s64 ns = clock_ns(MONOTONIC);

		seen(w, &all->latest[4], was, count);
		w->looks++;
		w->expired += expired;
		if (expired > w->most_expired)
			w->most_expired = expired;
		if ((u64)(ns - last_ns) > w->gap_ns) {
			w->gap_ns = ns - last_ns;
			w->gap_from_ns = last_ns;
			w->gap_from_count = last_count;
			w->gap_to_count = count;
		}
		last_ns = ns;
		last_count = count;
	}
}

static void watch(u64 period_ms)
{
	struct account *all = account(1);
	/* Each watcher writes its own line of the account, so a CPU more doesn't slow the others down. */
	all->period_ns = (period_ms ? period_ms : 100) * 1000000;
	for (int cpu = 0; cpu < CPUS; cpu++) {
		const u64 mask = 1UL << cpu;
		/* A CPU that isn't there has no watcher, and no line in a report. */
		const s64 child = checked("clone", call(NR_clone, 17 /* SIGCHLD */, 0, 0, 0, 0, 0));

		if (child == 0) {
			call(NR_setsid, 0, 0, 0, 0, 0, 0);
			if (call(NR_sched_setaffinity, 0, sizeof(mask), (long)&mask, 0, 0, 0) < 0)
				call(NR_exit_group, 0, 0, 0, 0, 0, 0);
			look_for_ever(all, cpu);
		}
	}
}

/* The clock of a file descriptor (FD_TO_CLOCKID, Documentation/driver-api/ptp.rst), and the page as linux/vmclock-abi.h
 * has it. Of some readings the one that was bracketed most tightly counts.
 */
static void vmclock(const char *path)
{
	const s64 clock = checked("open", call(NR_openat, -100, (long)path, 0, 0, 0, 0));
	const s64 device = checked("open", call(NR_openat, -100, (long)"/dev/vmclock0", 0, 0, 0, 0));
	struct { unsigned char head[16]; u64 marker, flags; unsigned char pad[2], status, rest[69]; u64 generation; } page;
	struct timespec best = { 0, 0 };
	u64 best_before = 0, best_after = ~0UL;
	s64 error = 0;

	for (int n = 0; n < PTP_READS && !error; n++) {
		struct timespec now;
		const u64 before = counter();

		error = call(NR_clock_gettime, ~clock << 3 | 3, (long)&now, 0, 0, 0, 0);
		const u64 after = counter();

		if (!error && after - before < best_after - best_before) {
			best = now;
			best_before = before;
			best_after = after;
		}
	}
	if (checked("read", call(NR_read, device, (long)&page, sizeof(page), 0, 0, 0)) != sizeof(page))
		fail("read", sizeof(page));
	text("vmclock");
	field("error", error);
	field("ns", error ? 0 : best.s * 1000000000 + best.ns);
	field("before", error ? 0 : best_before);
	field("after", error ? 0 : best_after);
	field("marker", page.marker);
	field("generation", page.generation);
	field("status", page.status);
	say();
}

static void report(void)
{
	struct account *all = account(0);

	for (int cpu = 0; cpu < CPUS; cpu++) {
		const struct watcher *w = &all->watcher[cpu];

		if (!w->looks)
			continue;
		text("watcher");
		field("cpu", cpu);
		field("period_ns", all->period_ns);
		field("looks", w->epoch == all->epoch ? w->looks : 0);
		field("back", w->back);
		field("back_ns", w->back_ns);
		field("expired", w->expired);
		field("most_expired", w->most_expired);
		field("gap_ns", w->gap_ns);
		field("gap_from_ns", w->gap_from_ns);
		field("gap_from_count", w->gap_from_count);
		field("gap_to_count", w->gap_to_count);
		say();
	}
	__atomic_fetch_add(&all->epoch, 1, __ATOMIC_SEQ_CST);
}

__attribute__((used)) static void start(u64 *stack)
{
	const u64 argc = stack[0];
	char **argv = (char **)(stack + 1);
	u64 *auxv = stack + argc + 2;

	while (*auxv++) /* the environment */
		;
	for (; auxv[0]; auxv += 2)
		if (auxv[0] == 33) /* AT_SYSINFO_EHDR */
			find_vdso((const char *)auxv[1]);
	if (argc == 2 && same(argv[1], "clocks")) {
		clocks();
	} else if ((argc == 2 || argc == 3) && same(argv[1], "watch")) {
		watch(argc == 3 ? parsed(argv[2]) : 0);
	} else if (argc == 2 && same(argv[1], "report")) {
		report();
	} else if (argc == 3 && same(argv[1], "vmclock")) {
		vmclock(argv[2]);
	} else if (argc == 3 && same(argv[1], "set")) {
		const u64 ns = parsed(argv[2]);
		const struct timespec now = { ns / 1000000000, ns % 1000000000 };

		checked("clock_settime", call(NR_clock_settime, REALTIME, (long)&now, 0, 0, 0, 0));
	} else {
		text("usage: guest-probe clocks | watch [MS] | report | vmclock PTP | set NS");
		say();
		call(NR_exit_group, 2, 0, 0, 0, 0, 0);
	}
	call(NR_exit_group, 0, 0, 0, 0, 0, 0);
}

__asm__(".globl _start\n_start:\n mov x29, #0\n mov x0, sp\n b start\n");
