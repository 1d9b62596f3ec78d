//! Whole, sharded, truncated and lying checkpoints.

use std::fs;

use safetensors::tensor::{Dtype as StDtype, TensorView, serialize_to_file};
use tempfile::TempDir;

use super::*;

fn write(folder: &Path, file: &str, tensors: &[(&str, StDtype, Vec<usize>, Vec<u8>)]) {
    let views = tensors.iter().map(|(name, dtype, shape, bytes)| {
        (*name, TensorView::new(*dtype, shape.clone(), bytes).unwrap())
    });
    serialize_to_file(views, None, &folder.join(file)).unwrap();
}

fn bytes_of(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

fn sample(folder: &Path) {
    let half: Vec<u8> =
        [1.5f32, -2.0].iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect();
    let ieee: Vec<u8> =
        [0.25f32, 8.0].iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect();
    write(
        folder,
        SINGLE,
        &[
            ("a", StDtype::F32, vec![2, 2], bytes_of(&[1.0, 2.0, 3.0, 4.0])),
            ("b", StDtype::BF16, vec![2], half),
            ("c", StDtype::F16, vec![2], ieee),
            ("d", StDtype::I64, vec![1], vec![0; 8]),
        ],
    );
}

fn f32s(tensor: &Tensor<'_>) -> Vec<f32> {
    let mut out = Vec::new();
    tensor.append_f32(&mut out);
    out
}

#[test]
fn three_formats_are_read() {
    let folder = TempDir::new().unwrap();
    sample(folder.path());
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    assert_eq!(f32s(&checkpoint.tensor("a", &[2, 2]).unwrap()), [1.0, 2.0, 3.0, 4.0]);
    assert_eq!(f32s(&checkpoint.tensor("b", &[2]).unwrap()), [1.5, -2.0]);
    assert_eq!(f32s(&checkpoint.tensor("c", &[2]).unwrap()), [0.25, 8.0]);
    let mut narrow = Vec::new();
    checkpoint.tensor("b", &[2]).unwrap().append_bf16(&mut narrow);
    checkpoint.tensor("c", &[2]).unwrap().append_bf16(&mut narrow);
    assert_eq!(narrow.iter().map(|x| x.to_f32()).collect::<Vec<_>>(), [1.5, -2.0, 0.25, 8.0]);
    assert!(checkpoint.has("a") && !checkpoint.has("e"));
}

#[test]
fn wrong_expectations_name_the_tensor() {
    let folder = TempDir::new().unwrap();
    sample(folder.path());
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    for (error, words) in [
        (checkpoint.tensor("a", &[4]).err().unwrap(), ["`a`", "[2, 2]", SINGLE]),
        (checkpoint.tensor("d", &[1]).err().unwrap(), ["`d`", "I64", SINGLE]),
        (checkpoint.tensor("e", &[1]).err().unwrap(), ["`e`", "missing", ""]),
    ] {
        let text = error.to_string();
        assert!(words.iter().all(|word| text.contains(word)), "{text}");
    }
}

#[test]
fn every_truncation_is_an_error() {
    let folder = TempDir::new().unwrap();
    sample(folder.path());
    let path = folder.path().join(SINGLE);
    let whole = fs::read(&path).unwrap();
    for length in 0..whole.len() {
        fs::write(&path, &whole[..length]).unwrap();
        let error = Checkpoint::open(folder.path()).err().expect("a truncated file was accepted");
        assert!(matches!(&error, LoadError::Corrupt { file, .. } if file == SINGLE), "{error}");
    }
}

#[test]
fn a_flipped_byte_of_the_header_never_panics() {
    let folder = TempDir::new().unwrap();
    sample(folder.path());
    let path = folder.path().join(SINGLE);
    let whole = fs::read(&path).unwrap();
    let header = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    for at in 0..header {
        for flip in [0x01, 0x10, 0x80] {
            let mut bytes = whole.clone();
            bytes[at] ^= flip;
            fs::write(&path, &bytes).unwrap();
            if let Ok(checkpoint) = Checkpoint::open(folder.path()) {
                for (name, shape) in [("a", &[2, 2][..]), ("b", &[2]), ("c", &[2])] {
                    if let Ok(tensor) = checkpoint.tensor(name, shape) {
                        assert_eq!(f32s(&tensor).len(), shape.iter().product::<usize>());
                    }
                }
            }
        }
    }
}

#[test]
fn absurd_offsets_and_shapes_are_errors() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join(SINGLE);
    for header in [
        r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,18446744073709551615]}}"#,
        r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}"#,
        r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[-4,0]}}"#,
        r#"{"a":{"dtype":"F32","shape":[9223372036854775808,8],"data_offsets":[0,4]}}"#,
        r#"{"a":{"dtype":"F32","shape":"x","data_offsets":[0,4]}}"#,
        r#"{"a":1}"#,
        r#"[]"#,
    ] {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(&[0; 4]);
        fs::write(&path, &bytes).unwrap();
        let opened = Checkpoint::open(folder.path());
        let shape: &[usize] = &[9_223_372_036_854_775_808, 8];
        assert!(opened.and_then(|c| c.tensor("a", shape).map(|t| t.dtype())).is_err(), "{header}");
    }
    fs::write(&path, u64::MAX.to_le_bytes()).unwrap();
    assert!(matches!(Checkpoint::open(folder.path()), Err(LoadError::Corrupt { .. })));
}

#[test]
fn shards_are_found_through_the_index() {
    let folder = TempDir::new().unwrap();
    write(folder.path(), "one.safetensors", &[("a", StDtype::F32, vec![1], bytes_of(&[1.0]))]);
    write(folder.path(), "two.safetensors", &[("b", StDtype::F32, vec![1], bytes_of(&[2.0]))]);
    let index = |text: &str| fs::write(folder.path().join(INDEX), text).unwrap();
    index(r#"{"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}"#);
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    assert_eq!(f32s(&checkpoint.tensor("a", &[1]).unwrap()), [1.0]);
    assert_eq!(f32s(&checkpoint.tensor("b", &[1]).unwrap()), [2.0]);
    for (text, word) in [
        (r#"{"weight_map": {"b": "one.safetensors"}}"#, "`b`"),
        (r#"{"weight_map": {"a": "three.safetensors"}}"#, "three.safetensors"),
        (r#"{"weight_map": {"a": "../one.safetensors"}}"#, "file name"),
        (r#"{"weight_map": {"a": "/etc/passwd"}}"#, "file name"),
        (r#"{"weight_map": {"a": ".."}}"#, "file name"),
        (r#"{"weight_map": {"a": 1}}"#, "file name"),
        (r#"{"weight_map": []}"#, "weight_map"),
        ("{}", "weight_map"),
        ("{", "JSON"),
    ] {
        index(text);
        let error = Checkpoint::open(folder.path()).err().expect(text).to_string();
        assert!(error.contains(word), "{text}: {error}");
    }
}

#[test]
fn a_folder_without_weights_names_the_file_it_wants() {
    let folder = TempDir::new().unwrap();
    let error = Checkpoint::open(folder.path()).err().unwrap().to_string();
    assert!(error.contains(SINGLE), "{error}");
}
