//! Layer 4: certificates that look after themselves.
//!
//! ```text
//! plan ─▶ renewals ─▶ errand ─▶ ledger: may an order be placed? ─▶ account ─▶ order ─▶ the storage, the store
//! which     when       one        schedule: is it due, and why?    the authority
//! ```

pub mod account;
mod apart;
pub mod call;
mod challenge;
mod desk;
mod diary;
mod drafts;
mod echo;
mod errand;
pub mod failure;
mod hook;
pub mod issued;
pub mod ledger;
mod list;
mod live;
mod note;
pub mod order;
mod place;
pub mod plan;
pub mod preflight;
mod proof;
mod rehearsal;
pub mod renewals;
mod roots;
mod schedule;
mod setback;
pub mod settings;
pub mod state;
mod suggestion;
pub mod transport;
mod way;
