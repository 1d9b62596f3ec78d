//! The model that is part of the program, so that a first try needs no download.

/// A model's files in the Hugging Face layout.
#[derive(Debug, Clone, Copy)]
pub struct BundledModel {
    /// Name and content of each file.
    pub files: &'static [(&'static str, &'static [u8])],
}

impl BundledModel {
    /// The content of a file.
    #[must_use]
    pub fn file(&self, name: &str) -> Option<&'static [u8]> {
        self.files.iter().find(|file| file.0 == name).map(|file| file.1)
    }
}

macro_rules! files {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_bytes!(concat!("../demo-model/", $name)))),*]
    };
}

/// The bundled demonstration model: weights for the engine, tokenizer and chat template for the
/// gateway.
#[must_use]
pub fn bundled_demo() -> BundledModel {
    BundledModel {
        files: files![
            "config.json",
            "generation_config.json",
            "model.safetensors",
            "tokenizer.json",
            "tokenizer_config.json",
            "chat_template.jinja",
        ],
    }
}
