/* Commands to the bytes that Redis reads (RESP: an array of bulk strings each), all of a round trip in one piece.
 *
 * What a commit of a batch says is thousands of short arguments and some long ones. hiredis formats each into a growing
 * string, copies that to Python's, and one a command still has to be joined: that was 5 % of a worker. Here the size is
 * known before the first byte is written, and each byte is written once.
 */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030b0000
#include <Python.h>
#include <string.h>

typedef struct {
    const char *data;
    Py_ssize_t size;
    char digits[24];
    Py_buffer view; /* of what is neither bytes nor text nor a number */
    int viewed;
} Argument;

/* A decimal number to `to`, without an end; its length. */
static int decimal(char *to, long long number)
{
    char reversed[24];
    int size = 0, length = 0;
    unsigned long long rest = number < 0 ? 0ULL - (unsigned long long)number : (unsigned long long)number;
    do reversed[size++] = '0' + (char)(rest % 10); while (rest /= 10);
    if (number < 0) to[length++] = '-';
    while (size) to[length++] = reversed[--size];
    return length;
}

static int opened(PyObject *from, Argument *argument)
{
    argument->viewed = 0;
    if (PyBytes_Check(from)) {
        char *data;
        if (PyBytes_AsStringAndSize(from, &data, &argument->size)) return -1;
        argument->data = data;
    } else if (PyUnicode_Check(from)) {
        argument->data = PyUnicode_AsUTF8AndSize(from, &argument->size);
        if (!argument->data) return -1;
    } else if (PyLong_Check(from) && !PyBool_Check(from)) {
        long long number = PyLong_AsLongLong(from);
        if (number == -1 && PyErr_Occurred()) return -1;
        argument->size = decimal(argument->digits, number);
        argument->data = argument->digits;
    } else { /* not any buffer: numpy's numbers are some */
        if (!PyMemoryView_Check(from)) return PyErr_Format(PyExc_TypeError, "got %R", (PyObject *)Py_TYPE(from)), -1;
        if (PyObject_GetBuffer(from, &argument->view, PyBUF_SIMPLE)) return -1;
        argument->viewed = 1;
        argument->data = argument->view.buf;
        argument->size = argument->view.len;
    }
    return 0;
}

static void closed(Argument *argument)
{
    if (argument->viewed) PyBuffer_Release(&argument->view);
}

static char *headed(char *to, char kind, Py_ssize_t size)
{
    *to++ = kind;
    to += decimal(to, size);
    *to++ = '\r';
    *to++ = '\n';
    return to;
}

/* The bytes of one command, from `to` on if there is such a place and `room` for them; how many they are, or -1. */
static Py_ssize_t written(PyObject *command, char *to, Py_ssize_t room)
{
    if (!command || !PyTuple_Check(command)) return PyErr_Format(PyExc_TypeError, "pack takes a list of tuples"), -1;
    char head[32];
    Py_ssize_t count = PyTuple_Size(command), total = headed(head, '*', count) - head;
    if (to) {
        if (total > room) goto changed;
        memcpy(to, head, total);
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        Argument argument;
        if (opened(PyTuple_GetItem(command, i), &argument)) return -1;
        Py_ssize_t before = headed(head, '$', argument.size) - head, each = before + argument.size + 2;
        if (argument.size > PY_SSIZE_T_MAX / 4 || total > PY_SSIZE_T_MAX / 4) {
            closed(&argument);
            PyErr_NoMemory();
            return -1;
        }
        if (to && each <= room - total) {
            memcpy(to + total, head, before);
            memcpy(to + total + before, argument.data, argument.size);
            memcpy(to + total + before + argument.size, "\r\n", 2);
        }
        closed(&argument);
        if (to && each > room - total) goto changed;
        total += each;
    }
    return total;
changed:
    PyErr_SetString(PyExc_RuntimeError, "an argument changed its size while it was packed");
    return -1;
}

static PyObject *pack(PyObject *Py_UNUSED(module), PyObject *commands)
{
    if (!PyList_Check(commands)) return PyErr_Format(PyExc_TypeError, "pack takes a list of tuples");
    Py_ssize_t count = PyList_Size(commands), total = 0;
    for (Py_ssize_t i = 0; i < count; i++) {
        Py_ssize_t size = written(PyList_GetItem(commands, i), NULL, 0);
        if (size < 0) return NULL;
        if (total > PY_SSIZE_T_MAX - size) return PyErr_NoMemory();
        total += size;
    }
    PyObject *packed = PyBytes_FromStringAndSize(NULL, total);
    if (!packed) return NULL;
    char *to = PyBytes_AsString(packed);
    Py_ssize_t at = 0;
    for (Py_ssize_t i = 0; i < count && at >= 0; i++) {
        Py_ssize_t size = written(PyList_GetItem(commands, i), to + at, total - at);
        at = size < 0 ? -1 : at + size;
    }
    if (at != total) {
        if (at >= 0) PyErr_SetString(PyExc_RuntimeError, "an argument changed its size while it was packed");
        Py_DECREF(packed);
        return NULL;
    }
    return packed;
}

static PyMethodDef methods[] = {
    {"pack", pack, METH_O, "pack(commands)"},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_resp", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__resp(void) { return PyModule_Create(&definition); }
