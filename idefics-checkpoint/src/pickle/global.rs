//! The allow-list of Python globals that a program may name.

use safetensors::Dtype;

/// A global on the allow-list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Global {
    /// `collections.OrderedDict`
    OrderedDict,
    /// `torch._utils._rebuild_tensor_v2`, a view of a typed storage.
    RebuildTensorV2,
    /// `torch._utils._rebuild_tensor_v3`, a view of an untyped storage with an explicit element type.
    RebuildTensorV3,
    /// `torch._utils._rebuild_parameter`, a `torch.nn.Parameter`.
    RebuildParameter,
    /// A storage class with its element type; `None` for `torch.storage.UntypedStorage`, which holds bytes.
    Storage(Option<Dtype>),
    /// An element type that has no storage class.
    Dtype(Dtype),
}

impl Global {
    /// Looks up a name of a Python module. Returns `None` if it is not on the allow-list.
    pub(super) fn find(module: &str, name: &str) -> Option<Self> {
        use Dtype::*;
        Some(match (module, name) {
            ("collections", "OrderedDict") => Self::OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2") => Self::RebuildTensorV2,
            ("torch._utils", "_rebuild_tensor_v3") => Self::RebuildTensorV3,
            ("torch._utils", "_rebuild_parameter") => Self::RebuildParameter,
            ("torch.storage", "UntypedStorage") => Self::Storage(None),
            // The classes of `torch.storage._dtype_to_storage_type_map`, except complex and quantised ones.
            ("torch", "DoubleStorage") => Self::Storage(Some(F64)),
            ("torch", "FloatStorage") => Self::Storage(Some(F32)),
            ("torch", "HalfStorage") => Self::Storage(Some(F16)),
            ("torch", "BFloat16Storage") => Self::Storage(Some(BF16)),
            ("torch", "LongStorage") => Self::Storage(Some(I64)),
            ("torch", "IntStorage") => Self::Storage(Some(I32)),
            ("torch", "ShortStorage") => Self::Storage(Some(I16)),
            ("torch", "CharStorage") => Self::Storage(Some(I8)),
            ("torch", "ByteStorage") => Self::Storage(Some(U8)),
            ("torch", "BoolStorage") => Self::Storage(Some(BOOL)),
            // The types of `torch.storage._new_dtypes()` that are real and take whole bytes.
            ("torch", "uint16") => Self::Dtype(U16),
            ("torch", "uint32") => Self::Dtype(U32),
            ("torch", "uint64") => Self::Dtype(U64),
            ("torch", "float8_e4m3fn") => Self::Dtype(F8_E4M3),
            ("torch", "float8_e5m2") => Self::Dtype(F8_E5M2),
            ("torch", "float8_e4m3fnuz") => Self::Dtype(F8_E4M3FNUZ),
            ("torch", "float8_e5m2fnuz") => Self::Dtype(F8_E5M2FNUZ),
            ("torch", "float8_e8m0fnu") => Self::Dtype(F8_E8M0),
            _ => return None,
        })
    }
}
