"""Whatever holds real numbers gives the answer of a float64 tensor of them; the rest is refused by name."""

import numpy as np
import pytest
import scipy.sparse
import torch

from tmixture import StudentTMixture
from tmixture.data.arrays import WIDER, as_tensor

FLOAT8 = [dtype for dtype in WIDER if dtype.is_floating_point]


def whole_numbers(n=300):
    """Three clusters of small numbers, which every dtype holds."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.tensor([[2, 2], [14, 2], [2, 14]])
    return centres.repeat_interleave(n // 3, 0) + torch.randint(0, 3, (n, 2), generator=generator)


def answers(data):
    mixture = StudentTMixture(3, 2, generator=0, dtype=torch.float64).fit(data)
    stream = StudentTMixture(3, 2, generator=0, dtype=torch.float64).partial_fit(data)
    density, labels = mixture.log_prob(data[:40]), mixture.predict(data)
    return mixture.means, stream.means, density, labels, torch.tensor(mixture.score(data))


ARRAYS = {
    "uint16": lambda x: x.to(torch.uint16),
    "uint32": lambda x: x.to(torch.uint32),
    "uint64": lambda x: x.to(torch.uint64),
    "NumPy's uint16": lambda x: x.numpy().astype(np.uint16),
    "NumPy's uint32": lambda x: x.numpy().astype(np.uint32),
    "NumPy's uint64": lambda x: x.numpy().astype(np.uint64),
    "NumPy's float16": lambda x: x.numpy().astype(np.float16),
    "big-endian": lambda x: x.numpy().astype(">f8"),
    "big-endian integers": lambda x: x.numpy().astype(">u2"),
    "negative strides": lambda x: x.numpy()[::-1, ::-1][::-1, ::-1].astype(float, order="K")[::-1][::-1],
    "Fortran's order": lambda x: np.asfortranarray(x.numpy()),
    "read-only": lambda x: np.frombuffer(x.numpy().tobytes(), dtype=np.int64).reshape(-1, 2),
    "nothing masked": lambda x: np.ma.array(x.numpy(), mask=np.zeros(x.shape, bool)),
    "a matrix": lambda x: np.asmatrix(x.numpy()),
    "lists": lambda x: x.tolist(),
}


@pytest.mark.parametrize("form", ARRAYS)
def test_every_form_of_the_same_numbers_gives_the_same_answers(form):
    x = whole_numbers()
    for one, other in zip(answers(ARRAYS[form](x)), answers(x.double())):
        assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", FLOAT8, ids=str)
def test_float8_is_taken_as_the_numbers_it_stands_for(dtype):
    x = (2.0 ** (whole_numbers() // 3)).to(dtype)  # powers of two are in all of them
    for one, other in zip(answers(x), answers(x.double())):
        assert torch.equal(one, other)


def test_reversed_rows_are_read_in_their_order():
    x = whole_numbers().double().numpy()
    mixture = StudentTMixture(3, 2, generator=0, dtype=torch.float64).fit(x)
    assert torch.equal(mixture.predict(x[::-1]), mixture.predict(x).flip(0))
    assert torch.equal(mixture(x[::-1]), mixture(x).flip(0))


@pytest.mark.parametrize("dtype", [torch.uint16, torch.uint32, torch.uint64, torch.int64])
def test_the_largest_integers_are_exact(dtype):
    largest = min(torch.iinfo(dtype).max, 10**15)
    assert as_tensor(torch.tensor([[largest]], dtype=dtype), "x").item() == largest


def test_companions_may_have_any_dtype():
    x, weight, labels = whole_numbers(), torch.arange(300) % 7, torch.arange(300) // 100
    expected = StudentTMixture(3, 2, generator=0).fit(x, weight, responsibilities=labels)
    for dtype in (torch.uint16, torch.uint32, torch.uint64):
        mixture = StudentTMixture(3, 2, generator=0).fit(x, weight.to(dtype), responsibilities=labels.to(torch.uint16))
        assert torch.equal(mixture.means, expected.means)
    foreign = StudentTMixture(3, 2, generator=0)
    foreign.fit(x, weight.numpy().astype(">f4"), responsibilities=labels.numpy().astype(">i2"))
    assert torch.equal(foreign.means, expected.means)


def test_parameters_may_be_any_arrays():
    weights, means, scales = (
        np.array([1, 3], ">u2"),
        np.array([[0.0, 1.0], [2.0, 3.0]])[::-1],
        np.eye(2)[None, ::-1, ::-1],
    )
    mixture = StudentTMixture.from_parameters(weights, means, scales.repeat(2, 0))
    assert mixture.weights.tolist() == [0.25, 0.75]
    assert mixture.means.tolist() == [[2.0, 3.0], [0.0, 1.0]]


def gaps():
    return np.ma.array(np.ones((5, 2)), mask=[[0, 1]] + [[0, 0]] * 4)


REFUSED = {
    "scipy's sparse": (lambda: scipy.sparse.csr_matrix(np.eye(5, 2)), "must be dense, got a sparse csr_matrix"),
    "scipy's sparse array": (lambda: scipy.sparse.coo_array(np.eye(5, 2)), "must be dense, got a sparse coo_array"),
    "sparse": (lambda: torch.eye(5, 2).to_sparse(), r"must be dense, got a tensor of layout torch\.sparse_coo"),
    "compressed": (lambda: torch.eye(5, 2).to_sparse_csr(), r"must be dense, got a tensor of layout torch\.sparse_csr"),
    "nested": (lambda: torch.nested.nested_tensor([torch.ones(2)] * 5), "must be dense, got a tensor of layout"),
    "masked": (gaps, "must not have masked entries"),
    "masked rows in a list": (lambda: list(gaps()), "must not have masked entries"),
    "masked tensor": (
        lambda: torch.masked.masked_tensor(torch.ones(5, 2), torch.eye(5, 2).bool()),
        "must not be masked, got a MaskedTensor",
    ),
    "quantized": (lambda: torch.quantize_per_tensor(torch.eye(5, 2), 0.1, 0, torch.qint8), "must hold real numbers"),
    "long double": (lambda: np.ones((5, 2), dtype=np.longdouble), "must hold real numbers, got dtype float"),
    "dates": (lambda: np.ones((5, 2), dtype="datetime64[s]"), "must hold real numbers, got dtype datetime64"),
    "objects": (lambda: [[1, None]] * 5, "must hold real numbers, got dtype object"),
    "records": (lambda: np.ones((5, 2), dtype="f4,f4"), "must hold real numbers, got dtype"),
    "ragged": (lambda: [[1, 2], [3]], "must have rows of numbers of the same length"),
}


@pytest.mark.filterwarnings("ignore")  # torch's prototypes
@pytest.mark.parametrize("form", REFUSED)
def test_the_rest_is_refused_by_name(form):
    make, message = REFUSED[form]
    if form == "long double" and np.dtype(np.longdouble).itemsize == 8:
        pytest.skip("long double is float64 here")
    mixture = StudentTMixture(1, 2, generator=0).fit(whole_numbers())
    before = mixture.means.clone()
    for call in (mixture.fit, mixture.partial_fit, mixture.predict, mixture.score):
        with pytest.raises(ValueError, match=f"^data {message}"):
            call(make())
    for call in (mixture, mixture.log_prob, mixture.outlier_weights):
        with pytest.raises(ValueError, match=f"^(x|data) {message}"):
            call(make())
    assert torch.equal(mixture.means, before)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["sample_weight", "responsibilities"])
def test_companions_are_refused_by_name(name):
    values = [np.ma.masked_less(np.arange(300), 3), np.ones(300, complex), torch.ones(300).to_sparse(), object()]
    for value in values:
        with pytest.raises(ValueError, match=f"^{name} must"):
            StudentTMixture(3, 2).fit(whole_numbers(), **{name: value})
