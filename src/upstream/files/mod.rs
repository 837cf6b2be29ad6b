//! Files on disk: which file, script or back end answers a path ([`try_files`]), opened beneath its root only
//! ([`root`]), remembered for a moment where they are small ([`lately`]), and the answer to GET and HEAD ([`answer`]).
//! [`path`], [`range`], [`validator`], [`encoding`] and [`media`] are pure.

pub mod answer;
pub mod encoding;
pub mod lately;
pub mod media;
pub mod path;
pub mod range;
pub mod root;
pub mod stream;
pub mod try_files;
pub mod validator;
