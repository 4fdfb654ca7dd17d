/* Power spectra of many frames at once: window, real transform and squared magnitude, eight frames side by side.
 *
 * A frame is a lane of a vector. All lanes take the same steps and none sees another, so a frame's bytes depend neither
 * on its neighbours nor on how many there are. Nothing is contracted (-ffp-contract=off) or reassociated, so the clones
 * for wider vectors give the bytes of the plain one.
 *
 * The transform of N real samples is that of N / 2 complex ones, x[2n] + i x[2n + 1], and then taken apart (Press et
 * al., Numerical Recipes, 12.3). The complex one goes in place, decimated in frequency by radices 4, 2, 3 and 5 (Van
 * Loan, Computational Frameworks for the FFT, 1992). So N is 2 * 2^a * 3^b * 5^c: 400 as well as 512.
 */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030b0000
#include <Python.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define LANES 8
#define LONGEST 4096
#define NAME "pipeline.frontend._spectra.plan"

typedef float lanes __attribute__((vector_size(LANES * sizeof(float))));
typedef float loose __attribute__((vector_size(LANES * sizeof(float)), aligned(sizeof(float)), may_alias));

#define INLINE static inline __attribute__((always_inline))
#if defined(CLONED) /* as a test wants it */
#elif defined(__x86_64__) && defined(__linux__)
#define CLONED __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define CLONED
#endif

typedef struct {
    int size, half;               /* N, N / 2 */
    int passes, radix[12];        /* their product is N / 2 */
    int place[LONGEST / 2];       /* where the passes leave each frequency */
    float window[LONGEST];        /* times a half, which taking apart needs of everything */
    float turns[2 * LONGEST];     /* of each pass, butterfly and output but the first: cos, -sin */
    float apart[LONGEST / 2 + 2]; /* of each frequency to N / 4: cos, -sin */
} Plan;

static const double TURN = 6.283185307179586476925286766559;

static int factored(Plan *plan)
{
    static const int radices[] = {4, 2, 3, 5};
    int rest = plan->half;
    for (int i = 0; i < 4; i++)
        for (; rest % radices[i] == 0; rest /= radices[i]) plan->radix[plan->passes++] = radices[i];
    return rest == 1;
}

static void prepared(Plan *plan, const float *window)
{
    for (int i = 0; i < plan->size; i++) plan->window[i] = 0.5f * window[i];
    float *turn = plan->turns;
    for (int pass = 0, n = plan->half; pass < plan->passes; n /= plan->radix[pass++])
        for (int p = 0; p < n / plan->radix[pass]; p++)
            for (int j = 1; j < plan->radix[pass]; j++) {
                *turn++ = (float)cos(TURN * p * j / n);
                *turn++ = (float)-sin(TURN * p * j / n);
            }
    for (int k = 0; k < plan->half; k++) {
        int place = 0;
        for (int pass = 0, n = plan->half, rest = k; pass < plan->passes; rest /= plan->radix[pass++]) {
            n /= plan->radix[pass];
            place += rest % plan->radix[pass] * n;
        }
        plan->place[k] = place;
    }
    for (int k = 0; k <= plan->half / 2; k++) {
        plan->apart[2 * k] = (float)cos(TURN * k / plan->size);
        plan->apart[2 * k + 1] = (float)-sin(TURN * k / plan->size);
    }
}

static void forgotten(PyObject *capsule) { free(PyCapsule_GetPointer(capsule, NAME)); }

static PyObject *plan(PyObject *Py_UNUSED(module), PyObject *window)
{
    Py_buffer given;
    if (PyObject_GetBuffer(window, &given, PyBUF_SIMPLE)) return NULL;
    Py_ssize_t size = given.len / (Py_ssize_t)sizeof(float);
    Plan *made = NULL;
    if (size >= 2 && size <= LONGEST && size % 2 == 0) {
        made = calloc(1, sizeof(Plan));
        if (!made) { /* no ValueError: that would mean scipy, and other bits */
            PyBuffer_Release(&given);
            return PyErr_NoMemory();
        }
        made->size = (int)size;
        made->half = (int)size / 2;
        if (factored(made)) {
            prepared(made, given.buf);
        } else {
            free(made);
            made = NULL;
        }
    }
    PyBuffer_Release(&given);
    if (!made) {
        PyErr_Format(PyExc_ValueError, "a window of %zd samples: expected 2 * 2^a * 3^b * 5^c, up to %d", size, LONGEST);
        return NULL;
    }
    PyObject *capsule = PyCapsule_New(made, NAME, forgotten);
    if (!capsule) free(made);
    return capsule;
}

/* Eight rows of eight become eight columns. */
INLINE void turned(lanes r[LANES])
{
#define PICK(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
    lanes a[LANES], b[LANES];
    for (int i = 0; i < LANES; i += 2) {
        a[i] = PICK(r[i], r[i + 1], 0, 8, 1, 9, 4, 12, 5, 13);
        a[i + 1] = PICK(r[i], r[i + 1], 2, 10, 3, 11, 6, 14, 7, 15);
    }
    for (int i = 0; i < LANES; i += 4)
        for (int j = 0; j < 2; j++) {
            b[i + 2 * j] = PICK(a[i + j], a[i + j + 2], 0, 1, 8, 9, 4, 5, 12, 13);
            b[i + 2 * j + 1] = PICK(a[i + j], a[i + j + 2], 2, 3, 10, 11, 6, 7, 14, 15);
        }
    for (int i = 0; i < 4; i++) {
        r[i] = PICK(b[i], b[i + 4], 0, 1, 2, 3, 8, 9, 10, 11);
        r[i + 4] = PICK(b[i], b[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
    }
}

typedef struct {
    lanes re, im;
} point;

INLINE point plus(point a, point b) { return (point){a.re + b.re, a.im + b.im}; }
INLINE point minus(point a, point b) { return (point){a.re - b.re, a.im - b.im}; }
INLINE point times(point a, float c) { return (point){a.re * c, a.im * c}; }
INLINE point clockwise(point a) { return (point){a.im, -a.re}; } /* a quarter: times -i */
INLINE point rotated(point a, const float *turn)
{
    return (point){a.re * turn[0] - a.im * turn[1], a.re * turn[1] + a.im * turn[0]};
}

/* The transforms of two to five points, in place. */
INLINE void small(point *x, int radix)
{
    if (radix == 2) {
        point b = x[1];
        x[1] = minus(x[0], b);
        x[0] = plus(x[0], b);
    } else if (radix == 3) {
        point sum = plus(x[1], x[2]), side = clockwise(times(minus(x[1], x[2]), 0.866025403784438647f));
        point a = minus(x[0], times(sum, 0.5f));
        x[0] = plus(x[0], sum);
        x[1] = plus(a, side);
        x[2] = minus(a, side);
    } else if (radix == 4) {
        point a = plus(x[0], x[2]), b = minus(x[0], x[2]);
        point c = plus(x[1], x[3]), d = clockwise(minus(x[1], x[3]));
        x[0] = plus(a, c);
        x[1] = plus(b, d);
        x[2] = minus(a, c);
        x[3] = minus(b, d);
    } else {
        const float c1 = 0.309016994374947424f, s1 = 0.951056516295153572f;
        const float c2 = -0.809016994374947424f, s2 = 0.587785252292473129f;
        point t1 = plus(x[1], x[4]), t2 = plus(x[2], x[3]), t3 = minus(x[1], x[4]), t4 = minus(x[2], x[3]);
        point a = plus(plus(x[0], times(t1, c1)), times(t2, c2)), b = plus(plus(x[0], times(t1, c2)), times(t2, c1));
        point c = clockwise(plus(times(t3, s1), times(t4, s2))), d = clockwise(minus(times(t3, s2), times(t4, s1)));
        x[0] = plus(plus(x[0], t1), t2);
        x[1] = plus(a, c);
        x[2] = plus(b, d);
        x[3] = minus(b, d);
        x[4] = minus(a, c);
    }
}

/* One pass over all of `z` [half], in blocks of n. */
INLINE const float *passed(point *z, int half, int n, int radix, const float *turns)
{
    int part = n / radix;
    for (int p = 0; p < part; p++, turns += 2 * (radix - 1))
        for (int q = p; q < half; q += n) {
            point x[5];
            for (int j = 0; j < radix; j++) x[j] = z[q + j * part];
            small(x, radix);
            z[q] = x[0];
            for (int j = 1; j < radix; j++) z[q + j * part] = p ? rotated(x[j], turns + 2 * (j - 1)) : x[j];
        }
    return turns;
}

/* Eight columns of samples of eight frames, `many` of which are there, windowed, as four points of each. */
INLINE void entered(const Plan *plan, const float *const from[LANES], int i, int many, point *z)
{
    lanes x[LANES];
    if (many == LANES) {
        lanes window = *(const loose *)(plan->window + i);
#pragma GCC unroll 8
        for (int l = 0; l < LANES; l++) x[l] = *(const loose *)(from[l] + i) * window;
    } else {
        for (int l = 0; l < LANES; l++)
            for (int j = 0; j < LANES; j++) x[l][j] = j < many ? from[l][i + j] * plan->window[i + j] : 0;
    }
    turned(x);
    for (int j = 0; j < many; j += 2) z[(i + j) / 2] = (point){x[j], x[j + 1]};
}

/* The spectra of eight frames, which begin at from[lane], to to[lane]. */
CLONED static void eight(const Plan *plan, const float *const from[LANES], float *const to[LANES])
{
    point z[LONGEST / 2];
    lanes power[LONGEST / 2 + LANES];
    int size = plan->size, half = plan->half;
    int i = 0;
    for (; i + LANES <= size; i += LANES) entered(plan, from, i, LANES, z);
    if (i < size) entered(plan, from, i, size - i, z);
    const float *turns = plan->turns;
    for (int pass = 0, n = half; pass < plan->passes; n /= plan->radix[pass++]) {
        if (plan->radix[pass] == 4) turns = passed(z, half, n, 4, turns);
        if (plan->radix[pass] == 2) turns = passed(z, half, n, 2, turns);
        if (plan->radix[pass] == 3) turns = passed(z, half, n, 3, turns);
        if (plan->radix[pass] == 5) turns = passed(z, half, n, 5, turns);
    }
    lanes sum = z[0].re + z[0].im, difference = z[0].re - z[0].im;
    power[0] = (sum + sum) * (sum + sum);
    power[half] = (difference + difference) * (difference + difference);
    for (int k = 1; k <= half / 2; k++) {
        point a = z[plan->place[k]], b = z[plan->place[half - k]];
        point even = {a.re + b.re, a.im - b.im}, odd = {a.im + b.im, b.re - a.re};
        odd = rotated(odd, plan->apart + 2 * k);
        point u = plus(even, odd), v = minus(even, odd);
        power[k] = u.re * u.re + u.im * u.im;
        power[half - k] = v.re * v.re + v.im * v.im;
    }
    for (int k = half + 1; k % LANES; k++) power[k] = (lanes){0};
    for (int k = 0; k <= half; k += LANES) {
        int many = half + 1 - k < LANES ? half + 1 - k : LANES;
        lanes x[LANES];
        for (int j = 0; j < LANES; j++) x[j] = power[k + j];
        turned(x);
        if (many == LANES) {
#pragma GCC unroll 8
            for (int l = 0; l < LANES; l++) *(loose *)(to[l] + k) = x[l];
        } else {
            for (int l = 0; l < LANES; l++) memcpy(to[l] + k, &x[l], many * sizeof(float));
        }
    }
}

/* Samples, int16 (as the floats they stand for) or float32, to `signal`. */
static void heard(float *signal, const char *samples, Py_ssize_t many, int ints)
{
    if (ints)
        for (Py_ssize_t i = 0; i < many; i++) signal[i] = ((const int16_t *)samples)[i] * (1.0f / 32768);
    else
        memcpy(signal, samples, many * sizeof(float));
}

typedef struct {
    Py_ssize_t streams, overlap, many, hop, frames, together; /* together: streams whose signals are laid out at once */
    const char *context, *samples;
    int ints;
    float *power;
    char *after;
} Task;

static void done(const Plan *plan, const Task *task, float *scratch)
{
    Py_ssize_t length = task->overlap + task->many, bins = plan->half + 1;
    float unwanted[LONGEST / 2 + 1];
    Py_ssize_t each = task->ints ? sizeof(int16_t) : sizeof(float);
    if (length == 0) return; /* nothing of any stream, be they ever so many */
    for (Py_ssize_t begin = 0; begin < task->streams; begin += task->together) {
        Py_ssize_t some = task->streams - begin < task->together ? task->streams - begin : task->together;
        for (Py_ssize_t b = 0; b < some; b++) {
            const char *context = task->context + (begin + b) * task->overlap * each;
            const char *samples = task->samples + (begin + b) * task->many * each;
            char *after = task->after + (begin + b) * task->overlap * each;
            Py_ssize_t kept = task->many < task->overlap ? task->overlap - task->many : 0; /* of what was behind */
            float *signal = scratch + b * length;
            heard(signal, context, task->overlap, task->ints);
            heard(signal + task->overlap, samples, task->many, task->ints);
            memcpy(after, context + (task->overlap - kept) * each, kept * each);
            memcpy(after + kept * each, samples + (task->many - task->overlap + kept) * each, (task->overlap - kept) * each);
        }
        for (Py_ssize_t first = 0; first < some * task->frames; first += LANES) {
            const float *from[LANES];
            float *to[LANES];
            for (int l = 0; l < LANES; l++) {
                int wanted = first + l < some * task->frames;
                Py_ssize_t frame = wanted ? first + l : first;
                from[l] = scratch + frame / task->frames * length + frame % task->frames * task->hop;
                to[l] = wanted ? task->power + (begin * task->frames + frame) * bins : unwanted;
            }
            eight(plan, from, to);
        }
    }
}

static PyObject *spectra(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *capsule;
    Py_buffer context, samples, power, after;
    Task task = {0};
    if (!PyArg_ParseTuple(args, "Ony*y*pw*w*", &capsule, &task.streams, &context, &samples, &task.ints, &power, &after))
        return NULL;
    const Plan *plan = PyCapsule_GetPointer(capsule, NAME);
    Py_ssize_t wide = sizeof(float), width = task.ints ? sizeof(int16_t) : sizeof(float);
    int fits = plan && task.streams > 0;
    if (fits) {
        task.overlap = context.len / width / task.streams;
        task.many = samples.len / width / task.streams;
        task.hop = plan->size - task.overlap;
        task.frames = task.hop > 0 ? task.many / task.hop : 0;
        fits = task.hop > 0 && task.streams * task.overlap * width == context.len && context.len == after.len &&
               task.streams * task.frames * task.hop * width == samples.len &&
               task.streams * task.frames * (plan->half + 1) * wide == power.len;
    }
    float *scratch = NULL;
    if (fits) {
        task.together = task.frames ? (64 + task.frames - 1) / task.frames : 1; /* few lanes idle, all within the cache */
        if (task.together > task.streams) task.together = task.streams;
        scratch = malloc((task.together * (task.overlap + task.many) + 1) * wide);
        if (!scratch) PyErr_NoMemory();
    } else if (plan) {
        PyErr_Format(PyExc_ValueError,
                     "%zd streams, windows of %d: %zd bytes of context (%zd after), %zd of samples and %zd of power do "
                     "not fit each other",
                     task.streams, plan->size, context.len, after.len, samples.len, power.len);
    }
    if (scratch) {
        task.context = context.buf;
        task.samples = samples.buf;
        task.power = power.buf;
        task.after = after.buf;
        Py_BEGIN_ALLOW_THREADS
        done(plan, &task, scratch);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&context);
    PyBuffer_Release(&samples);
    PyBuffer_Release(&power);
    PyBuffer_Release(&after);
    if (!scratch) return NULL;
    free(scratch);
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"plan", plan, METH_O, "plan(window)"},
    {"spectra", spectra, METH_VARARGS, "spectra(plan, streams, context, samples, ints, power, after)"},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_spectra", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__spectra(void) { return PyModule_Create(&definition); }
