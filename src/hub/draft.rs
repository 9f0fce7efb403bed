//! Drafts: what somebody wants to be published, and what it comes to.
//!
//! The one rule: a draft is judged against the document that it is to change, under one lock with the change.

use crate::conditions::Conditions;
use crate::document::{Change, Document, Patch, Refusal};
use crate::hub::history::{Audience, EventData};
use crate::sse::event::{EventId, EventName, Topic};

/// What somebody wants to be published.
pub(crate) enum Draft {
    /// A change of the document, or of one topic, if the conditions hold for what is there.
    Change(Option<Topic>, Change, Conditions),
    /// An event that changes nothing.
    OneOff(Audience, EventName, EventData),
}

/// What a draft comes to.
pub(crate) enum Judged {
    Update(Patch),
    OneOff(Audience, EventName, EventData),
}

impl Draft {
    /// Judges it for the document as it is.
    pub fn judge(self, document: &Document) -> Result<Judged, Refusal> {
        match self {
            Draft::Change(topic, change, conditions) => {
                if conditions.are_any() {
                    let tag = document.changed(topic.as_ref()).map(tag);
                    let judged = conditions.judge_write(tag.as_deref());
                    judged.map_err(|failed| Refusal::Unmet(failed.text()))?;
                }
                document.judge(topic.as_ref(), change).map(Judged::Update)
            }
            Draft::OneOff(audience, name, data) => Ok(Judged::OneOff(audience, name, data)),
        }
    }
}

/// The `ETag` of what changed last with this id.
pub(crate) fn tag(id: EventId) -> String {
    format!("\"{id}\"")
}
