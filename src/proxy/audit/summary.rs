//! One sentence for people, with an event's new values in braces: `plan set to {plan}`.

use serde_json::{Map, Value};

/// A template, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Summary(Vec<Piece>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(String),
    Value(String),
}

impl Summary {
    /// Takes a template apart. An error completes the sentence "the summary …".
    pub(crate) fn parse<'a>(
        template: &str,
        names: impl Iterator<Item = &'a str> + Clone,
    ) -> Result<Self, String> {
        let mut pieces = Vec::new();
        let mut rest = template;
        while let Some((text, more)) = rest.split_once('{') {
            let Some((name, more)) = more.split_once('}') else {
                return Err(format!("has a {{ without its }}: {template:?}"));
            };
            if !names.clone().any(|known| known == name) {
                return Err(format!("names {{{name}}}, which is none of the new_values"));
            }
            pieces.extend([Piece::Text(text.to_owned()), Piece::Value(name.to_owned())]);
            rest = more;
        }
        pieces.push(Piece::Text(rest.to_owned()));
        Ok(Self(pieces))
    }

    /// The sentence; a value that is not there is a question mark.
    pub(super) fn render(&self, values: Option<&Map<String, Value>>) -> String {
        let mut sentence = String::new();
        for piece in &self.0 {
            match piece {
                Piece::Text(text) => sentence.push_str(text),
                Piece::Value(name) => match values.and_then(|values| values.get(name)) {
                    None | Some(Value::Null) => sentence.push('?'),
                    Some(Value::String(text)) => sentence.push_str(text),
                    Some(other) => sentence.push_str(&other.to_string()),
                },
            }
        }
        sentence
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_stand_where_the_template_names_them() {
        let summary = Summary::parse("{days} more days for {who}.", ["days", "who"].into_iter()).unwrap();
        let values = json!({"days": 14});
        assert_eq!(summary.render(values.as_object()), "14 more days for ?.");
        assert_eq!(summary.render(None), "? more days for ?.");
    }

    #[test]
    fn a_name_that_is_no_value_is_a_fault() {
        assert!(Summary::parse("to {plan}", ["days"].into_iter()).unwrap_err().contains("{plan}"));
        assert!(Summary::parse("to {plan", ["plan"].into_iter()).is_err());
    }
}
