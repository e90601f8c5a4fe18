//! Reads metadata: typed values that stay in the mapped file.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use super::cursor::Cursor;
use super::error::shorten;
use super::{GgufError, GgufFault};

/// The types of values. The number of a type in a file is its index in [`Self::ALL`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ValueType {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    String,
    Array,
    U64,
    I64,
    F64,
}

impl ValueType {
    const ALL: [Self; 13] = [
        Self::U8,
        Self::I8,
        Self::U16,
        Self::I16,
        Self::U32,
        Self::I32,
        Self::F32,
        Self::Bool,
        Self::String,
        Self::Array,
        Self::U64,
        Self::I64,
        Self::F64,
    ];

    fn read(cursor: &mut Cursor<'_>, what: &str) -> Result<Self, GgufFault> {
        let offset = cursor.at as u64;
        let id = cursor.u32(what)?;
        Self::ALL.get(id as usize).copied().ok_or_else(|| GgufFault::Value {
            what: what.to_owned(),
            offset,
            found: id.to_string(),
            expected: "a value type, 0 to 12".to_owned(),
        })
    }

    /// Returns the size of a value in bytes, or the minimum size if it varies.
    fn smallest(self) -> u64 {
        match self {
            Self::U8 | Self::I8 | Self::Bool => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 | Self::String => 8,
            Self::Array => 12,
        }
    }

    /// Decodes the value in `bytes`, which [`Field::read`] has checked.
    fn value(self, bytes: &[u8]) -> GgufValue<'_> {
        fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
            bytes.try_into().expect("`bytes` holds exactly one value")
        }
        match self {
            Self::U8 => GgufValue::Unsigned(u64::from(bytes[0])),
            Self::I8 => GgufValue::Signed(i64::from(bytes[0].cast_signed())),
            Self::U16 => GgufValue::Unsigned(u64::from(u16::from_le_bytes(array(bytes)))),
            Self::I16 => GgufValue::Signed(i64::from(i16::from_le_bytes(array(bytes)))),
            Self::U32 => GgufValue::Unsigned(u64::from(u32::from_le_bytes(array(bytes)))),
            Self::I32 => GgufValue::Signed(i64::from(i32::from_le_bytes(array(bytes)))),
            Self::F32 => GgufValue::Float(f64::from(f32::from_le_bytes(array(bytes)))),
            Self::Bool => GgufValue::Bool(bytes[0] == 1),
            Self::String => GgufValue::String(bytes),
            Self::Array => unreachable!("`Field::value` decodes arrays"),
            Self::U64 => GgufValue::Unsigned(u64::from_le_bytes(array(bytes))),
            Self::I64 => GgufValue::Signed(i64::from_le_bytes(array(bytes))),
            Self::F64 => GgufValue::Float(f64::from_le_bytes(array(bytes))),
        }
    }
}

/// The type of a value and its place in the file.
#[derive(Debug, Clone)]
pub(super) struct Field {
    kind: ValueType,
    /// Type and number of the items, if the value is an array.
    items: Option<(ValueType, u64)>,
    /// Byte range of the value in the file. It leaves out the length of a string, and the item type and count of an
    /// array.
    range: Range<usize>,
}

impl Field {
    /// Reads the type and the value of `key`, and checks them.
    pub(super) fn read(cursor: &mut Cursor<'_>, key: &str) -> Result<Self, GgufFault> {
        let what = format!("the value of `{}`", shorten(key));
        let kind = ValueType::read(cursor, &what)?;
        match kind {
            ValueType::String => {
                let bytes = cursor.string(&what)?;
                let range = cursor.at - bytes.len()..cursor.at;
                Ok(Self { kind, items: None, range })
            }
            ValueType::Array => {
                let offset = cursor.at as u64;
                let item = ValueType::read(cursor, &what)?;
                if item == ValueType::Array {
                    let (found, expected) = ("an array of arrays".to_owned(), "an array of plain values".to_owned());
                    return Err(GgufFault::Value { what, offset, found, expected });
                }
                let count = cursor.count(&what, item.smallest())?;
                let start = cursor.at;
                match item {
                    ValueType::String => {
                        for _ in 0..count {
                            cursor.string(&what)?;
                        }
                    }
                    _ => check_bools(item, cursor, count * item.smallest(), &what)?,
                }
                Ok(Self { kind, items: Some((item, count)), range: start..cursor.at })
            }
            plain => {
                let start = cursor.at;
                check_bools(plain, cursor, plain.smallest(), &what)?;
                Ok(Self { kind, items: None, range: start..cursor.at })
            }
        }
    }

    fn value<'a>(&self, file: &'a [u8]) -> GgufValue<'a> {
        let bytes = &file[self.range.clone()];
        match self.items {
            Some((kind, count)) => GgufValue::Array(GgufArray { kind, count, bytes }),
            None => self.kind.value(bytes),
        }
    }
}

/// Skips `n` bytes that hold values of type `kind`, and checks that bools are 0 or 1.
fn check_bools(kind: ValueType, cursor: &mut Cursor<'_>, n: u64, what: &str) -> Result<(), GgufFault> {
    let offset = cursor.at;
    let bytes = cursor.take(n, what)?;
    match bytes.iter().position(|&byte| kind == ValueType::Bool && byte > 1) {
        None => Ok(()),
        Some(index) => Err(GgufFault::Value {
            what: what.to_owned(),
            offset: (offset + index) as u64,
            found: bytes[index].to_string(),
            expected: "a bool, 0 or 1".to_owned(),
        }),
    }
}

/// A value of the metadata. Numbers of the same kind but of different widths share a variant.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum GgufValue<'a> {
    /// A u8, u16, u32 or u64.
    Unsigned(u64),
    /// An i8, i16, i32 or i64.
    Signed(i64),
    /// An f32 or f64.
    Float(f64),
    /// A bool.
    Bool(bool),
    /// Text, which need not be UTF-8.
    String(&'a [u8]),
    /// An array of values of one type.
    Array(GgufArray<'a>),
}

impl GgufValue<'_> {
    /// Returns the value if it is an integer of any type that is not negative.
    pub fn as_u64(self) -> Option<u64> {
        match self {
            Self::Unsigned(value) => Some(value),
            Self::Signed(value) => u64::try_from(value).ok(),
            _ => None,
        }
    }

    /// Formats the value for a message.
    fn shown(self) -> String {
        match self {
            Self::Unsigned(value) => value.to_string(),
            Self::Signed(value) => value.to_string(),
            Self::Float(value) => value.to_string(),
            Self::Bool(value) => value.to_string(),
            Self::String(bytes) => format!("{:?}", shorten(&String::from_utf8_lossy(bytes))),
            Self::Array(array) => format!("an array of {} items", array.len()),
        }
    }
}

/// An array of values of one type. The values are decoded on access.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GgufArray<'a> {
    kind: ValueType,
    count: u64,
    bytes: &'a [u8],
}

impl<'a> GgufArray<'a> {
    /// Returns the number of items.
    pub fn len(&self) -> usize {
        self.count as usize // fits, because each item has at least one byte in the file
    }

    /// Returns whether the array has no items.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Returns the items in order.
    pub fn iter(&self) -> impl Iterator<Item = GgufValue<'a>> + use<'a> {
        let (kind, mut rest) = (self.kind, self.bytes);
        std::iter::from_fn(move || {
            if rest.is_empty() {
                return None;
            }
            let length = match kind {
                ValueType::String => {
                    let (length, behind) = rest.split_first_chunk::<8>()?;
                    rest = behind;
                    usize::try_from(u64::from_le_bytes(*length)).ok()?
                }
                plain => plain.smallest() as usize,
            };
            let (item, behind) = rest.split_at_checked(length)?;
            rest = behind;
            Some(kind.value(item))
        })
    }
}

/// The metadata of a file, by key.
#[derive(Debug, Clone, Copy)]
pub struct Metadata<'a> {
    pub(super) path: &'a Path,
    pub(super) fields: &'a BTreeMap<String, Field>,
    pub(super) file: &'a [u8],
}

impl<'a> Metadata<'a> {
    /// Returns the value of a key, if the file has the key.
    pub fn get(&self, key: &str) -> Option<GgufValue<'a>> {
        self.fields.get(key).map(|field| field.value(self.file))
    }

    /// Returns every key with its value.
    pub fn iter(&self) -> impl Iterator<Item = (&'a str, GgufValue<'a>)> + use<'a> {
        let file = self.file;
        self.fields.iter().map(move |(key, field)| (key.as_str(), field.value(file)))
    }

    /// Creates an error about the value of a key.
    pub(super) fn error(&self, key: &str, found: impl Into<String>, expected: impl Into<String>) -> GgufError {
        let (key, found, expected) = (key.to_owned(), found.into(), expected.into());
        GgufError::new(self.path, GgufFault::Key { key, found, expected })
    }

    fn missing(&self, key: &str, expected: &'static str) -> GgufError {
        GgufError::new(self.path, GgufFault::MissingKey { key: key.to_owned(), expected })
    }

    fn typed<T>(
        &self,
        key: &str,
        expected: &'static str,
        read: impl FnOnce(GgufValue<'a>) -> Option<T>,
    ) -> Result<Option<T>, GgufError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        read(value).map(Some).ok_or_else(|| self.error(key, value.shown(), expected))
    }

    /// Reads a text. Returns `None` if the file does not have the key.
    ///
    /// # Errors
    /// [`GgufFault::Key`] if the value has another type or is not UTF-8.
    pub fn text(&self, key: &str) -> Result<Option<&'a str>, GgufError> {
        self.typed(key, "a text in UTF-8", |value| match value {
            GgufValue::String(bytes) => std::str::from_utf8(bytes).ok(),
            _ => None,
        })
    }

    /// Reads a text that the file must have.
    ///
    /// # Errors
    /// [`GgufFault::MissingKey`] if the key is missing, and the errors of [`Self::text`].
    pub fn required_text(&self, key: &str) -> Result<&'a str, GgufError> {
        self.text(key)?.ok_or_else(|| self.missing(key, "a text"))
    }

    /// Reads a whole number below 2^31, such as a size, count or id. Returns `None` if the file does not have the key.
    ///
    /// # Errors
    /// [`GgufFault::Key`] if the value has another type or is out of range.
    pub fn number(&self, key: &str) -> Result<Option<usize>, GgufError> {
        self.typed(key, "a whole number below 2^31", |value| {
            let value = value.as_u64().filter(|value| *value < 1 << 31)?;
            usize::try_from(value).ok()
        })
    }

    /// Reads a whole number that the file must have, and that must not be 0.
    ///
    /// # Errors
    /// [`GgufFault::MissingKey`] if the key is missing, [`GgufFault::Key`] if the value is 0, and the errors of
    /// [`Self::number`].
    pub fn required_number(&self, key: &str) -> Result<usize, GgufError> {
        match self.number(key)? {
            None => Err(self.missing(key, "a whole number of at least 1")),
            Some(0) => Err(self.error(key, "0", "a whole number of at least 1")),
            Some(value) => Ok(value),
        }
    }

    /// Reads a floating-point number, or an integer that is not negative. Returns `None` if the file does not have the
    /// key.
    ///
    /// # Errors
    /// [`GgufFault::Key`] if the value has another type or is not finite.
    pub fn float(&self, key: &str) -> Result<Option<f64>, GgufError> {
        self.typed(key, "a finite number", |value| match value {
            GgufValue::Float(value) => Some(value).filter(|value| value.is_finite()),
            other => other.as_u64().map(|value| value as f64),
        })
    }

    /// Reads a bool. Returns `None` if the file does not have the key.
    ///
    /// # Errors
    /// [`GgufFault::Key`] if the value has another type.
    pub fn bool(&self, key: &str) -> Result<Option<bool>, GgufError> {
        self.typed(key, "true or false", |value| match value {
            GgufValue::Bool(value) => Some(value),
            _ => None,
        })
    }

    /// Reads an array of texts. Returns `None` if the file does not have the key.
    ///
    /// # Errors
    /// [`GgufFault::Key`] if the value has another type, or if a text is not UTF-8.
    pub fn texts(&self, key: &str) -> Result<Option<Vec<&'a str>>, GgufError> {
        self.items(key, "an array of UTF-8 texts", |item| match item {
            GgufValue::String(bytes) => std::str::from_utf8(bytes).ok(),
            _ => None,
        })
    }

    /// Reads an array of texts that the file must have.
    ///
    /// # Errors
    /// [`GgufFault::MissingKey`] if the key is missing, and the errors of [`Self::texts`].
    pub fn required_texts(&self, key: &str) -> Result<Vec<&'a str>, GgufError> {
        self.texts(key)?.ok_or_else(|| self.missing(key, "an array of texts"))
    }

    /// Reads an array of integers that are not negative. Returns `None` if the file does not have the key.
    ///
    /// # Errors
    /// [`GgufFault::Key`] if the value has another type, or if an integer is negative.
    pub fn numbers(&self, key: &str) -> Result<Option<Vec<u64>>, GgufError> {
        self.items(key, "an array of whole numbers", GgufValue::as_u64)
    }

    /// Reads an array of floating-point numbers. Returns `None` if the file does not have the key.
    ///
    /// # Errors
    /// [`GgufFault::Key`] if the value has another type, or if a number is not finite.
    pub fn floats(&self, key: &str) -> Result<Option<Vec<f64>>, GgufError> {
        self.items(key, "an array of numbers", |item| match item {
            GgufValue::Float(value) => Some(value).filter(|value| value.is_finite()),
            _ => None,
        })
    }

    fn items<T>(
        &self,
        key: &str,
        expected: &'static str,
        read: impl Fn(GgufValue<'a>) -> Option<T>,
    ) -> Result<Option<Vec<T>>, GgufError> {
        self.typed(key, expected, |value| match value {
            GgufValue::Array(array) => array.iter().map(read).collect(),
            _ => None,
        })
    }
}
