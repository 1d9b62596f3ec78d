//! The console's files: one page, its style, its modules, as they are served and as they are written.
//!
//! Nothing here does I/O or knows a role. There is no build step: what a browser gets is what is in `assets/`, linked
//! into the binary, so that a console works without a network and can be read by whoever reviews it. The files hold no
//! data; what they show comes from the API of the gateway that serves them.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

#[cfg(test)]
mod tests;

/// Colours for pages of the project, light and dark; what `mainstay replay --html` writes has them, too.
pub const PALETTE: &str = include_str!("../assets/palette.css");

/// What a browser may do with the console's files: run and show them, ask the gateway that they came from, and nothing
/// else. No page may show them in a frame of its own.
pub const SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
     img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The page itself, by the name under which [`asset`] has it.
pub const PAGE: &str = "index.html";

/// One file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asset {
    /// Its name; there are no folders.
    pub name: &'static str,
    /// What it is.
    pub text: &'static str,
}

macro_rules! assets {
    ($($name:literal),* $(,)?) => {
        &[$(Asset { name: $name, text: include_str!(concat!("../assets/", $name)) }),*]
    };
}

/// All files.
pub const ASSETS: &[Asset] = assets![
    "index.html",
    "palette.css",
    "console.css",
    "icon.svg",
    "app.js",
    "feed.js",
    "format.js",
    "dom.js",
    "plot.js",
    "grid.js",
    "lanes.js",
    "overview.js",
    "residency.js",
    "pins.js",
    "sessions.js",
    "routing.js",
    "members.js",
    "config.js",
];

/// The file of that name.
#[must_use]
pub fn asset(name: &str) -> Option<&'static Asset> {
    ASSETS.iter().find(|asset| asset.name == name)
}

impl Asset {
    /// Its media type; by the end of its name, as browsers refuse modules and styles of any other.
    #[must_use]
    pub fn media_type(&self) -> &'static str {
        match self.name.rsplit('.').next() {
            Some("html") => "text/html; charset=utf-8",
            Some("css") => "text/css; charset=utf-8",
            Some("js") => "text/javascript; charset=utf-8",
            Some("svg") => "image/svg+xml",
            _ => "application/octet-stream",
        }
    }

    /// Its entity tag, quotes included: FNV-1a of the text, which tells one build's file from another's.
    #[must_use]
    pub fn tag(&self) -> String {
        let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        format!("\"{:016x}\"", self.text.bytes().fold(0xcbf2_9ce4_8422_2325, step))
    }
}
