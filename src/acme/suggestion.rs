//! Asking an authority when it would have a certificate renewed (RFC 9773).

use std::time::{Duration, SystemTime};

use super::desk::Desk;
use super::live::Live;
use super::state::{Seconds, State, Suggestion};

/// RFC 9773, section 4.3, on how often to ask: "clients SHOULD set reasonable limits on their checking interval", such
/// as a minute and a day.
pub(super) const ASK_AGAIN: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(86_400));
/// How soon to ask again when there was no answer.
const AFTER_SILENCE: Duration = Duration::from_secs(3600);

/// Asks the authority that `live` is from, and keeps its answer in `state`. Where it is not known which that was, the
/// first one is asked: another does not know the certificate, and says so.
pub(super) async fn ask(desk: &Desk, live: &Live, state: &mut State, now: SystemTime) {
    let mut suggestion =
        state.suggestion.clone().unwrap_or(Suggestion { window: None, explanation: None, ask_again: Seconds::of(now) });
    suggestion.ask_again = Seconds::of(now + ASK_AGAIN.1);
    let authorities = &desk.settings.authorities;
    let from = state.authority.as_ref();
    let authority = match from {
        Some(from) => authorities.iter().find(|authority| *from == authority.directory),
        None => authorities.first(),
    };
    if let Some(authority) = authority {
        // The semaphore is never closed.
        let _permit = desk.orders.acquire().await;
        let answer = match desk.client(authority).await {
            Ok(client) => client.renewal_info(&live.leaf).await,
            Err(failure) => Err(failure),
        };
        match answer {
            Ok(Some(told)) => {
                suggestion.window = Some((Seconds::of(told.start), Seconds::of(told.end)));
                suggestion.explanation = told.explanation;
                suggestion.ask_again = Seconds::of(now + told.check_again.clamp(ASK_AGAIN.0, ASK_AGAIN.1));
                // It knows the certificate, so it is its own.
                state.authority = Some(authority.directory.clone());
            }
            Ok(None) => (suggestion.window, suggestion.explanation) = (None, None),
            // What it said before still holds; without that the age decides.
            Err(failure) => {
                desk.forget(authority);
                tracing::debug!(authority = authority.directory, "no renewal information: {failure}");
                let after = failure.retry_after.unwrap_or(AFTER_SILENCE);
                suggestion.ask_again = Seconds::of(now + after.clamp(ASK_AGAIN.0, ASK_AGAIN.1));
            }
        }
    }
    state.suggestion = Some(suggestion);
}
