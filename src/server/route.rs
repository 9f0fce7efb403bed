//! Routes: what each path names, and the methods it knows.

use crate::http::Answer;
use crate::hub::history::Audience;
use crate::sse::event::Topic;

/// What a path names.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Route {
    Events(Audience),
    State(Option<Topic>),
    Clients,
    Client(u64),
    Health,
    Metrics,
    Lab,
    /// A fault of the client of that id or, without one, of the server.
    Fault(Option<u64>, String),
    Page,
}

impl Route {
    /// The route of a path.
    pub fn of(path: &str) -> Result<Route, Answer> {
        let topic = |text: &str| Topic::parse(text).map_err(|rule| Answer::refusal(400, rule));
        let client = |text: &str| {
            let id = text.parse();
            id.map_err(|_| Answer::refusal(404, "a client is a number; GET /clients lists them"))
        };
        let segments: Vec<&str> = path.split('/').skip(1).collect();
        let route = match segments[..] {
            ["events"] => Route::Events(None),
            ["events", text] => Route::Events(Some(topic(text)?)),
            ["state"] => Route::State(None),
            ["state", text] => Route::State(Some(topic(text)?)),
            ["clients"] => Route::Clients,
            ["clients", id] => Route::Client(client(id)?),
            ["lab"] => Route::Lab,
            ["lab", "clients", id, fault] => Route::Fault(Some(client(id)?), fault.to_owned()),
            ["lab", "server", fault] => Route::Fault(None, fault.to_owned()),
            ["healthz"] => Route::Health,
            ["metrics"] => Route::Metrics,
            _ => Route::Page,
        };
        Ok(route)
    }

    /// The methods that it knows, as `Allow` says them.
    pub fn methods(&self) -> &'static str {
        match self {
            Route::Events(_) => "GET, HEAD, POST, OPTIONS",
            Route::State(_) => "GET, HEAD, POST, PATCH, PUT, DELETE, OPTIONS",
            Route::Client(_) => "DELETE, OPTIONS",
            Route::Fault(..) => "POST, OPTIONS",
            Route::Clients | Route::Health | Route::Metrics | Route::Lab | Route::Page => {
                "GET, HEAD, OPTIONS"
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_names_what_it_looks_like() {
        let route = |path: &str| Route::of(path).map_err(|answer| answer.status);
        let kitchen = || Topic::parse("kitchen").ok();
        assert_eq!(route("/events"), Ok(Route::Events(None)));
        assert_eq!(route("/events/kitchen"), Ok(Route::Events(kitchen())));
        assert_eq!(route("/state/kitchen"), Ok(Route::State(kitchen())));
        assert_eq!(route("/state/"), Err(400));
        assert_eq!(route("/state/a b"), Err(400));
        assert_eq!(route("/clients/7"), Ok(Route::Client(7)));
        assert_eq!(route("/clients/x"), Err(404));
        assert_eq!(route("/lab/clients/7/cut"), Ok(Route::Fault(Some(7), "cut".into())));
        assert_eq!(route("/lab/server/refuse"), Ok(Route::Fault(None, "refuse".into())));
        assert_eq!(route("/"), Ok(Route::Page));
        assert_eq!(route("/events/a/b"), Ok(Route::Page));
    }
}
