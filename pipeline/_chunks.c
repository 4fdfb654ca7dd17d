/* Entries of a log, as hiredis gives them, to what a chunk is made of: those that are as producers push them.
 *
 * This is the way of nearly every entry, and of a worker's time it was the part of the interpreter's that took longest.
 * What has other fields, or any fault, is left to `chunk.py`, which knows all rules; what is taken here it would take
 * alike, and a test holds the two against each other.
 */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030b0000
#include <Python.h>
#include <stdint.h>
#include <string.h>

#define MAX_NUMBER (1LL << 62)

static uint32_t crc_of[256];

/* CRC-32 as in zlib, PNG and gzip: a name decides its partition. */
static uint32_t crc32(const unsigned char *data, Py_ssize_t size)
{
    uint32_t crc = 0xffffffff;
    while (size--) crc = crc_of[(crc ^ *data++) & 0xff] ^ crc >> 8;
    return ~crc;
}

static void prepared(void)
{
    for (uint32_t n = 0; n < 256; n++) {
        uint32_t c = n;
        for (int k = 0; k < 8; k++) c = c & 1 ? 0xedb88320 ^ c >> 1 : c >> 1;
        crc_of[n] = c;
    }
}

typedef struct {
    Py_ssize_t partition, partitions, max_name, sample_bytes, max_bytes;
    int floats;
} Rules;

/* A list's or a tuple's: how many, or -1; and one of them, borrowed, or NULL without an error. */
static Py_ssize_t many(PyObject *list)
{
    if (!list) return -1;
    return PyList_Check(list) ? PyList_Size(list) : PyTuple_Check(list) ? PyTuple_Size(list) : -1;
}

static PyObject *one(PyObject *list, Py_ssize_t index)
{
    PyObject *item = PyList_Check(list) ? PyList_GetItem(list, index) : PyTuple_GetItem(list, index);
    if (!item) PyErr_Clear();
    return item;
}

/* Bytes, or NULL without an error: hiredis makes other things of what is no entry. */
static const unsigned char *bytes_of(PyObject *list, Py_ssize_t index, Py_ssize_t *size)
{
    char *data;
    PyObject *item = one(list, index);
    if (!item || !PyBytes_Check(item)) return NULL;
    if (PyBytes_AsStringAndSize(item, &data, size)) {
        PyErr_Clear();
        return NULL;
    }
    return (const unsigned char *)data;
}

static int is(PyObject *list, Py_ssize_t index, const char *expected)
{
    Py_ssize_t size, length = (Py_ssize_t)strlen(expected);
    const unsigned char *data = bytes_of(list, index, &size);
    return data && size == length && !memcmp(data, expected, length);
}

/* A decimal number of 1 to 19 digits that is at most 2^62, or -1. */
static long long number(const unsigned char *digits, Py_ssize_t size)
{
    uint64_t value = 0;
    if (size < 1 || size > 19) return -1;
    for (Py_ssize_t i = 0; i < size; i++) {
        if (digits[i] < '0' || digits[i] > '9') return -1;
        value = value * 10 + (digits[i] - '0');
    }
    return value <= MAX_NUMBER ? (long long)value : -1;
}

/* Printable ASCII without braces: whatever else may be in a name needs a closer look. */
static int plain(const unsigned char *name, Py_ssize_t size)
{
    for (Py_ssize_t i = 0; i < size; i++)
        if (name[i] < ' ' || name[i] > '~' || name[i] == '{' || name[i] == '}') return 0;
    return size > 0;
}

/* Little-endian float32, none of them NaN or infinity. */
static int sound(const unsigned char *data, Py_ssize_t size)
{
    for (Py_ssize_t i = 0; i + 4 <= size; i += 4)
        if ((data[i + 3] & 0x7f) == 0x7f && data[i + 2] & 0x80) return 0;
    return 1;
}

/* `(id, ms, stream, seq, data)` of an entry `[id, [names and values in turns]]`, a new reference; None: look closer. */
static PyObject *parsed(PyObject *entry, const Rules *rules)
{
    PyObject *flat = many(entry) == 2 ? one(entry, 1) : NULL;
    if (many(flat) != 6) Py_RETURN_NONE;
    if (!is(flat, 0, "stream") || !is(flat, 2, "seq") || !is(flat, 4, "data")) Py_RETURN_NONE;
    Py_ssize_t id_size, name_size, digits, size, at = 0;
    const unsigned char *id = bytes_of(entry, 0, &id_size), *name = bytes_of(flat, 1, &name_size);
    const unsigned char *seq_digits = bytes_of(flat, 3, &digits), *data = bytes_of(flat, 5, &size);
    if (!id || !name || !seq_digits || !data) Py_RETURN_NONE;
    while (at < id_size && id[at] != '-') at++;
    long long ms = at < id_size ? number(id, at) : -1, seq = number(seq_digits, digits);
    if (ms < 0 || seq < 0 || name_size > rules->max_name || !plain(name, name_size)) Py_RETURN_NONE;
    if (crc32(name, name_size) % (uint64_t)rules->partitions != (uint64_t)rules->partition) Py_RETURN_NONE;
    if (size > rules->max_bytes || size % rules->sample_bytes) Py_RETURN_NONE;
    if (rules->floats && !sound(data, size)) Py_RETURN_NONE;
    return Py_BuildValue("(OLs#LO)", one(entry, 0), ms, (const char *)name, name_size, seq, one(flat, 5));
}

static PyObject *parse(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *entries;
    Rules rules;
    if (!PyArg_ParseTuple(args, "Onnnnnp", &entries, &rules.partition, &rules.partitions, &rules.max_name,
                          &rules.sample_bytes, &rules.max_bytes, &rules.floats))
        return NULL;
    if (many(entries) < 0) return PyErr_Format(PyExc_TypeError, "parse takes a list of entries");
    if (rules.partitions < 1 || rules.sample_bytes < 1)
        return PyErr_Format(PyExc_ValueError, "%zd partitions, samples of %zd bytes: expected 1 or more of both",
                            rules.partitions, rules.sample_bytes);
    Py_ssize_t count = many(entries);
    Py_ssize_t odd = 0, total = 0, size;
    PyObject *found = PyList_New(count);
    for (Py_ssize_t i = 0; found && i < count; i++) {
        PyObject *parts = parsed(one(entries, i), &rules);
        if (parts && parts == Py_None) odd++;
        if (parts && parts != Py_None && bytes_of(parts, 4, &size)) total += size;
        if (!parts || PyList_SetItem(found, i, parts)) Py_CLEAR(found);
    }
    return found ? Py_BuildValue("(Nnn)", found, odd, total) : NULL;
}

static PyMethodDef methods[] = {
    {"parse", parse, METH_VARARGS, "parse(entries, partition, partitions, max_name, sample_bytes, max_bytes, floats)"},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_chunks", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__chunks(void)
{
    prepared();
    return PyModule_Create(&definition);
}
