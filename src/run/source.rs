//! Where the configuration comes from.

use std::path::PathBuf;

use crate::config::{self, Config};

/// Where the configuration is read from.
#[derive(Debug, Clone)]
pub enum Source {
    /// A file, read again by every reload.
    File(PathBuf),
    /// A text that has no file: the demo's.
    Text {
        /// What relative paths are relative to; absolute.
        folder: PathBuf,
        /// What the text is called in messages.
        name: String,
        /// The text.
        text: String,
    },
}

impl Source {
    /// What stands for it in messages and names its control socket.
    pub fn path(&self) -> PathBuf {
        match self {
            Source::File(path) => path.clone(),
            Source::Text { folder, name, .. } => folder.join(name),
        }
    }

    /// Reads it, as it is now.
    pub fn load(&self) -> Result<Config, config::Problems> {
        let env = |name: &str| std::env::var(name).ok();
        match self {
            Source::File(path) => config::load(path, &env),
            Source::Text { folder, name, text } => config::parse(folder, &[(name, text)], &env),
        }
    }
}
