/* Commands to the bytes that Redis reads (RESP: an array of bulk strings each), all of a round trip in one piece.
 *
 * What a commit of a batch says is thousands of short arguments and some long ones. hiredis formats each into a growing
 * string, copies that to Python's, and one a command still has to be joined: that was 5 % of a worker. Here the size is
 * known before the first byte is written, and each byte is written once. A dictionary among the arguments stands for its
 * names and values in turns: an entry's fields.
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

typedef struct {
    char *to; /* NULL: only how many bytes there are is asked */
    Py_ssize_t room, total;
} Text;

static int changed(void)
{
    PyErr_SetString(PyExc_RuntimeError, "an argument changed its size while it was packed");
    return -1;
}

/* `head`, `size` bytes of data and, behind them, an end. */
static int put(Text *text, const char *head, Py_ssize_t before, const char *data, Py_ssize_t size)
{
    if (size > PY_SSIZE_T_MAX / 4 || text->total > PY_SSIZE_T_MAX / 4) return PyErr_NoMemory(), -1;
    Py_ssize_t each = before + size + 2;
    if (text->to) {
        if (each > text->room - text->total) return changed();
        char *to = text->to + text->total;
        memcpy(to, head, before);
        memcpy(to + before, data, size);
        memcpy(to + before + size, "\r\n", 2);
    }
    text->total += each;
    return 0;
}

static int one(Text *text, PyObject *value)
{
    char head[32];
    Argument argument;
    if (opened(value, &argument)) return -1;
    int failed = put(text, head, headed(head, '$', argument.size) - head, argument.data, argument.size);
    closed(&argument);
    return failed;
}

/* One command, behind what is there. */
static int written(Text *text, PyObject *command)
{
    if (!command || !PyTuple_Check(command)) return PyErr_Format(PyExc_TypeError, "pack takes a list of tuples"), -1;
    Py_ssize_t items = PyTuple_Size(command), count = 0;
    for (Py_ssize_t i = 0; i < items; i++) {
        PyObject *item = PyTuple_GetItem(command, i);
        count += PyDict_CheckExact(item) ? 2 * PyDict_Size(item) : 1;
    }
    char head[32];
    if (put(text, head, headed(head, '*', count) - head - 2, "", 0)) return -1;
    for (Py_ssize_t i = 0; i < items; i++) {
        PyObject *item = PyTuple_GetItem(command, i), *name, *value;
        if (!PyDict_CheckExact(item)) {
            if (one(text, item)) return -1;
            continue;
        }
        for (Py_ssize_t at = 0; PyDict_Next(item, &at, &name, &value);)
            if (one(text, name) || one(text, value)) return -1;
    }
    return 0;
}

static PyObject *pack(PyObject *Py_UNUSED(module), PyObject *commands)
{
    if (!PyList_Check(commands)) return PyErr_Format(PyExc_TypeError, "pack takes a list of tuples");
    Py_ssize_t count = PyList_Size(commands);
    Text sized = {0};
    for (Py_ssize_t i = 0; i < count; i++)
        if (written(&sized, PyList_GetItem(commands, i))) return NULL;
    PyObject *packed = PyBytes_FromStringAndSize(NULL, sized.total);
    if (!packed) return NULL;
    Text text = {PyBytes_AsString(packed), sized.total, 0};
    int failed = 0;
    for (Py_ssize_t i = 0; i < count && !failed; i++) failed = written(&text, PyList_GetItem(commands, i));
    if (!failed && text.total != sized.total) failed = changed();
    if (failed) Py_CLEAR(packed);
    return packed;
}

static PyMethodDef methods[] = {
    {"pack", pack, METH_O, "pack(commands)"},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_resp", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__resp(void) { return PyModule_Create(&definition); }
