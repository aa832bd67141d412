/* Writes one chunk to many sockets in a row; decides nothing about what came short.

   The same as write_all_in_python of writing.py, which stands in where this was not built. */

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030b0000
#include <Python.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

/* Python ignores SIGPIPE anyway; where the flag exists, an embedding that does not is safe too. */
#ifndef MSG_NOSIGNAL
#define MSG_NOSIGNAL 0
#endif

typedef struct {
    Py_ssize_t index;
    Py_ssize_t outcome;
} Short;

static Py_ssize_t write_one(int fd, const void *data, size_t size)
{
    ssize_t taken;
    do {
        taken = send(fd, data, size, MSG_DONTWAIT | MSG_NOSIGNAL);
    } while (taken < 0 && errno == EINTR);
    if (taken >= 0)
        return taken;
    return errno == EAGAIN || errno == EWOULDBLOCK ? 0 : -(Py_ssize_t)errno;
}

static PyObject *list_shorts(const Short *shorts, Py_ssize_t count)
{
    PyObject *list = PyList_New(count);
    for (Py_ssize_t i = 0; list != NULL && i < count; i++) {
        PyObject *pair = Py_BuildValue("(nn)", shorts[i].index, shorts[i].outcome);
        if (pair == NULL || PyList_SetItem(list, i, pair) < 0)
            Py_CLEAR(list);
    }
    return list;
}

static PyObject *write_range(const int *fds, Py_ssize_t start, Py_ssize_t stop, const Py_buffer *data)
{
    /* Room for the worst case before the first write: what was written must never be lost. */
    Py_ssize_t count = 0;
    Short *shorts = malloc((size_t)(stop - start + 1) * sizeof(Short));
    if (shorts == NULL)
        return PyErr_NoMemory();
    Py_BEGIN_ALLOW_THREADS
    for (Py_ssize_t i = start; i < stop; i++) {
        if (fds[i] < 0)
            continue;
        Py_ssize_t outcome = write_one(fds[i], data->buf, (size_t)data->len);
        if (outcome != data->len)
            shorts[count++] = (Short){i, outcome};
    }
    Py_END_ALLOW_THREADS
    PyObject *list = list_shorts(shorts, count);
    free(shorts);
    return list;
}

static PyObject *write_all(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *array, *list = NULL;
    Py_ssize_t start, stop;
    Py_buffer data, fds;
    if (!PyArg_ParseTuple(args, "Onny*:write_all", &array, &start, &stop, &data))
        return NULL;
    /* While the buffer is held the array cannot be resized by anybody. */
    if (PyObject_GetBuffer(array, &fds, PyBUF_ND | PyBUF_FORMAT) == 0) {
        if (fds.ndim != 1 || fds.format == NULL || strcmp(fds.format, "i") != 0)
            PyErr_Format(PyExc_ValueError, "fds must be an array of typecode 'i', not '%s'",
                         fds.format == NULL ? "B" : fds.format);
        else if (start < 0 || start > stop || stop > fds.shape[0])
            PyErr_Format(PyExc_ValueError, "start %zd and stop %zd must be a range of %zd fds",
                         start, stop, fds.shape[0]);
        else
            list = write_range(fds.buf, start, stop, &data);
        PyBuffer_Release(&fds);
    }
    PyBuffer_Release(&data);
    return list;
}

static PyMethodDef methods[] = {
    {"write_all", write_all, METH_VARARGS,
     "write_all(fds, start, stop, data)\n--\n\nSee gateway.hub.writing.write_all_in_python."},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {{0, NULL}};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "gateway.hub._writing",
    .m_doc = "The compiled loop of gateway.hub.writing.",
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC PyInit__writing(void)
{
    return PyModuleDef_Init(&definition);
}
