//! The tensors of a safetensors checkpoint, in one file, in shards, or linked into the program.
//!
//! The header is parsed here and not by a library because a hostile one must end in an error that
//! names file and tensor: every offset is checked with arithmetic that cannot wrap before a byte is
//! looked at. Files are mapped only while loading; the weights are repacked, so that nothing
//! depends on the file afterwards.

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fs::File;
use std::ops::Range;
use std::path::Path;

use half::{bf16, f16};
use memmap2::Mmap;
use serde::Deserialize;
use serde_json::Value;

use crate::LoadError;
use crate::json::{parse_object, read_bounded};

/// The largest header that is parsed.
pub const HEADER_BYTES_MAX: usize = 64 << 20;
/// The largest index of shards that is parsed.
pub const INDEX_BYTES_MAX: u64 = 64 << 20;
/// The most files of one checkpoint.
pub const SHARDS_MAX: usize = 4096;
/// The most tensors of one checkpoint.
pub const TENSORS_MAX: usize = 1 << 18;

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// The number formats that the engine computes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dtype {
    /// 32 bits.
    F32,
    /// IEEE half.
    F16,
    /// The upper half of an f32.
    Bf16,
}

impl Dtype {
    /// The name shown to people.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        }
    }

    fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }
}

/// The stored form of one tensor; its bytes lie at `range` of its file.
struct Entry {
    file: usize,
    dtype: String,
    shape: Vec<usize>,
    range: Range<usize>,
}

enum Data {
    Mapped(Mmap),
    Linked(&'static [u8]),
}

struct WeightFile {
    name: String,
    data: Data,
}

impl WeightFile {
    fn bytes(&self) -> &[u8] {
        match &self.data {
            Data::Mapped(map) => map,
            Data::Linked(bytes) => bytes,
        }
    }
}

/// All tensors of a model by name.
pub struct Checkpoint {
    files: Vec<WeightFile>,
    entries: HashMap<String, Entry>,
    place: String,
}

/// One tensor whose shape and format have been checked.
pub struct Tensor<'a> {
    dtype: Dtype,
    bytes: &'a [u8],
}

#[derive(Deserialize)]
struct HeaderEntry {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: (usize, usize),
}

impl Checkpoint {
    /// Opens the checkpoint of a folder: `model.safetensors`, else the shards that the index lists.
    pub fn open(folder: &Path) -> Result<Self, LoadError> {
        let single = folder.join(SINGLE);
        let index = folder.join(INDEX);
        let mut checkpoint = Self::empty(folder.display().to_string());
        if single.exists() || !index.exists() {
            let entries = checkpoint.add(map(&single, SINGLE)?)?;
            checkpoint.entries.extend(entries);
            return Ok(checkpoint);
        }
        checkpoint.open_shards(folder, &index)?;
        Ok(checkpoint)
    }

    /// The checkpoint in one buffer that is part of the program.
    pub fn linked(name: &str, bytes: &'static [u8]) -> Result<Self, LoadError> {
        let mut checkpoint = Self::empty(name.to_owned());
        let file = WeightFile { name: name.to_owned(), data: Data::Linked(bytes) };
        let entries = checkpoint.add(file)?;
        checkpoint.entries.extend(entries);
        Ok(checkpoint)
    }

    fn empty(place: String) -> Self {
        Self { files: Vec::new(), entries: HashMap::new(), place }
    }

    fn open_shards(&mut self, folder: &Path, index: &Path) -> Result<(), LoadError> {
        let value = parse_object(INDEX, &read_bounded(index, INDEX_BYTES_MAX)?)?;
        let member = |reason: &str| LoadError::Member {
            file: INDEX.to_owned(),
            member: "weight_map".to_owned(),
            reason: reason.to_owned(),
        };
        let map_of_tensors = value
            .get("weight_map")
            .and_then(Value::as_object)
            .ok_or_else(|| member("is missing or not an object"))?;
        if map_of_tensors.len() > TENSORS_MAX {
            return Err(member("lists more tensors than any model has"));
        }
        let mut shards: HashMap<&str, HashMap<String, Entry>> = HashMap::new();
        for (tensor, shard) in map_of_tensors {
            let shard = shard.as_str().filter(|name| is_plain_name(name));
            let shard = shard.ok_or_else(|| member("must map each tensor to a file name"))?;
            if !shards.contains_key(shard) {
                if shards.len() == SHARDS_MAX {
                    return Err(member("lists more files than any model has"));
                }
                shards.insert(shard, self.add(map(&folder.join(shard), shard)?)?);
            }
            let entry = shards.get_mut(shard).and_then(|entries| entries.remove(tensor));
            let entry = entry.ok_or_else(|| LoadError::MissingTensor {
                file: shard.to_owned(),
                tensor: tensor.clone(),
            })?;
            self.entries.insert(tensor.clone(), entry);
        }
        Ok(())
    }

    /// Keeps the file and answers with its tensors.
    fn add(&mut self, file: WeightFile) -> Result<HashMap<String, Entry>, LoadError> {
        let entries = parse_header(&file.name, file.bytes(), self.files.len())?;
        self.files.push(file);
        Ok(entries)
    }

    /// Whether there is a tensor of that name.
    #[must_use]
    pub fn has(&self, tensor: &str) -> bool {
        self.entries.contains_key(tensor)
    }

    /// The tensor of that name, which must have that shape and a format that can be computed from.
    pub fn tensor(&self, tensor: &str, expected: &[usize]) -> Result<Tensor<'_>, LoadError> {
        let name = || tensor.to_owned();
        let entry = self
            .entries
            .get(tensor)
            .ok_or_else(|| LoadError::MissingTensor { file: self.place.clone(), tensor: name() })?;
        let file = &self.files[entry.file];
        let dtype = match entry.dtype.as_str() {
            "F32" => Dtype::F32,
            "F16" => Dtype::F16,
            "BF16" => Dtype::Bf16,
            other => {
                let dtype = format!("{other:.20}");
                return Err(LoadError::Dtype { file: file.name.clone(), tensor: name(), dtype });
            }
        };
        if entry.shape != expected {
            return Err(LoadError::Shape {
                file: file.name.clone(),
                tensor: name(),
                found: entry.shape.clone(),
                expected: expected.to_vec(),
            });
        }
        let count = expected.iter().try_fold(dtype.bytes(), |n, d| n.checked_mul(*d));
        let bytes = &file.bytes()[entry.range.clone()];
        if count != Some(bytes.len()) {
            let reason =
                format!("tensor {tensor} holds {} bytes, its shape wants others", bytes.len());
            return Err(LoadError::Corrupt { file: file.name.clone(), reason });
        }
        Ok(Tensor { dtype, bytes })
    }
}

impl Tensor<'_> {
    /// The stored format.
    #[must_use]
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Appends all numbers to `out`, widened where they are stored in 16 bits.
    pub fn append_f32(&self, out: &mut Vec<f32>) {
        match self.dtype {
            Dtype::F32 => {
                out.extend(self.bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)))
            }
            Dtype::F16 => {
                out.extend(
                    self.bytes.as_chunks::<2>().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()),
                );
            }
            Dtype::Bf16 => {
                out.extend(
                    self.bytes.as_chunks::<2>().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()),
                );
            }
        }
    }

    /// Appends all numbers to `out`, rounded unless they are stored as bf16.
    pub fn append_bf16(&self, out: &mut Vec<bf16>) {
        if self.dtype == Dtype::Bf16 {
            out.extend(self.bytes.as_chunks::<2>().0.iter().map(|b| bf16::from_le_bytes(*b)));
            return;
        }
        let mut wide = Vec::with_capacity(self.bytes.len() / self.dtype.bytes());
        self.append_f32(&mut wide);
        out.extend(wide.into_iter().map(bf16::from_f32));
    }
}

/// Whether an index may name this file: nothing outside the model's own folder.
fn is_plain_name(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    let first_is_normal = matches!(parts.next(), Some(std::path::Component::Normal(_)));
    first_is_normal && parts.next().is_none() && !name.contains(['/', '\\'])
}

fn map(path: &Path, name: &str) -> Result<WeightFile, LoadError> {
    let wrap = |source| LoadError::Read { path: path.to_path_buf(), source };
    let file = File::open(path).map_err(wrap)?;
    let metadata = file.metadata().map_err(wrap)?;
    if !metadata.is_file() || metadata.len() == 0 {
        let reason = "it is empty or not a file".to_owned();
        return Err(LoadError::Corrupt { file: name.to_owned(), reason });
    }
    // SAFETY: the mapping is private and only read. A process that rewrites the file meanwhile can
    // change the numbers that are loaded, which is as good as another file; one that truncates it
    // can end this process, which is the price of mapping and lasts only until the weights are
    // packed.
    let data = unsafe { Mmap::map(&file) }.map_err(wrap)?;
    Ok(WeightFile { name: name.to_owned(), data: Data::Mapped(data) })
}

/// Reads the header: 8 bytes of length, then JSON from tensor names to format, shape and place.
fn parse_header(
    name: &str,
    bytes: &[u8],
    file: usize,
) -> Result<HashMap<String, Entry>, LoadError> {
    let corrupt = |reason: String| LoadError::Corrupt { file: name.to_owned(), reason };
    let Some((length, rest)) = bytes.split_first_chunk::<8>() else {
        return Err(corrupt(format!("it has {} bytes", bytes.len())));
    };
    let length = u64::from_le_bytes(*length);
    let length = usize::try_from(length).ok().filter(|n| *n <= HEADER_BYTES_MAX);
    let length = length.ok_or_else(|| corrupt("its header claims an absurd length".into()))?;
    if rest.len() < length {
        return Err(corrupt("it ends inside the header".into()));
    }
    let (header, data) = rest.split_at(length);
    let header: HashMap<String, Value> = serde_json::from_slice(header)
        .map_err(|e| corrupt(format!("its header does not parse: {e}")))?;
    if header.len() > TENSORS_MAX {
        return Err(corrupt("it lists more tensors than any model has".into()));
    }
    let mut entries = HashMap::with_capacity(header.len());
    for (tensor, value) in header {
        if tensor == "__metadata__" {
            continue;
        }
        let entry: HeaderEntry = serde_json::from_value(value)
            .map_err(|e| corrupt(format!("tensor {tensor:.80} does not parse: {e}")))?;
        let (start, end) = entry.data_offsets;
        if start > end || end > data.len() {
            return Err(corrupt(format!("tensor {tensor:.80} lies beyond the end of the file")));
        }
        // Both sums stay within the file's length, which is a usize.
        let range = 8 + length + start..8 + length + end;
        entries.insert(tensor, Entry { file, dtype: entry.dtype, shape: entry.shape, range });
    }
    Ok(entries)
}
