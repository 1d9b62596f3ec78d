//! The OpenAPI description of what a gateway serves.
//!
//! It is written by hand, since the bodies are other people's protocols and are read far more
//! tolerantly than any derived schema would say. A test holds it against the router, so that no
//! route is served undescribed and none is described that is not served.

use axum::http::header;
use axum::response::IntoResponse;

const DESCRIPTION: &str = include_str!("openapi.json");

/// `GET /openapi.json`.
pub(super) async fn description() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], DESCRIPTION)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;

    /// The paths between `.route("` and the next quote.
    fn routed() -> BTreeSet<&'static str> {
        let pieces = include_str!("mod.rs").split(".route(").skip(1);
        pieces.filter_map(|piece| piece.split('"').nth(1)).collect()
    }

    fn references<'a>(value: &'a Value, found: &mut BTreeSet<&'a str>) {
        match value {
            Value::Object(members) => {
                found.extend(members.get("$ref").and_then(Value::as_str));
                members.values().for_each(|member| references(member, found));
            }
            Value::Array(items) => items.iter().for_each(|item| references(item, found)),
            _ => {}
        }
    }

    #[test]
    fn it_describes_the_routes_and_no_others() {
        let document: Value = serde_json::from_str(DESCRIPTION).unwrap();
        let paths = document["paths"].as_object().unwrap();
        let described: BTreeSet<&str> = paths.keys().map(String::as_str).collect();
        assert!(described.len() > 10);
        assert_eq!(described, routed());
    }

    #[test]
    fn its_references_lead_somewhere() {
        let document: Value = serde_json::from_str(DESCRIPTION).unwrap();
        let mut found = BTreeSet::new();
        references(&document, &mut found);
        assert!(found.len() > 10);
        for reference in found {
            let place = document.pointer(reference.trim_start_matches('#'));
            assert!(place.is_some(), "{reference}");
        }
    }
}
