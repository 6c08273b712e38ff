//! Small files by their address, such as a picture that a request names.

use crate::{
    HubError,
    client::{READ_TIMEOUT, agent, roots},
};
use std::{path::Path, time::Duration};
use ureq::Agent;

/// Fetches files by their address, and follows no redirect: who allows an address allows no other.
#[derive(Debug)]
pub struct Fetcher(Agent);

impl Fetcher {
    /// `certificates`: as in [`crate::HubOptions`].
    ///
    /// # Errors
    /// [`HubError::Certificates`].
    pub fn new(certificates: Option<&Path>) -> Result<Self, HubError> {
        let config = agent(&roots(certificates)?).max_redirects(0).max_redirects_will_error(false);
        Ok(Fetcher(config.build().new_agent()))
    }

    /// The bytes at an address of `http` or `https`, `most_bytes` of them at most, within `time` from the first to the last.
    ///
    /// # Errors
    /// [`HubError::Fetch`].
    pub fn get(&self, url: &str, most_bytes: u64, time: Duration) -> Result<Vec<u8>, HubError> {
        let fail = |why: String| HubError::Fetch { url: url.to_owned(), why };
        let request = self.0.get(url).config().timeout_global(Some(time.min(READ_TIMEOUT))).build();
        let mut answer = request.call().map_err(|e| fail(e.to_string()))?;
        match answer.status() {
            status if status.is_success() => {}
            status if status.is_redirection() => {
                return Err(fail(format!(
                    "it leads elsewhere ({}), and redirects are not followed",
                    status.as_u16()
                )));
            }
            status => return Err(fail(format!("it answers {}", status.as_u16()))),
        }
        answer.body_mut().with_config().limit(most_bytes).read_to_vec().map_err(|e| match e {
            ureq::Error::BodyExceedsLimit(most) => fail(format!("it has more than {most} bytes")),
            e => fail(e.to_string()),
        })
    }
}
