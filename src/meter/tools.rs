//! Tools as OpenAI puts them before its models: function definitions in TypeScript.
//!
//! The form is not documented; it is what models repeat when they are asked for it
//! (community.openai.com/t/how-to-calculate-the-tokens-when-using-function-call/266573), and what the counts of
//! `tests/cases/prompts.json` confirm. Other providers' definitions are rendered alike: their own forms hold the same
//! names, types and descriptions.

use std::borrow::Cow;
use std::fmt::Write;

use serde_json::{Map, Value};

/// Renders `tools`: JSON texts, one a line. What is no definition of a function is kept as it is.
pub(super) fn render(tools: &str) -> String {
    if tools.is_empty() {
        return String::new();
    }
    let mut text = String::from("namespace functions {\n\n");
    for line in serde_json::Deserializer::from_str(tools).into_iter::<Value>() {
        let Ok(value) = line else {
            text.push_str(tools);
            break;
        };
        match &value {
            Value::Array(tools) => tools.iter().for_each(|tool| definition(tool, &mut text)),
            tool => definition(tool, &mut text),
        }
    }
    text.push_str("} // namespace functions");
    text
}

/// The arguments of a call: an object whose keys have no quotes. What is none stays as it is.
pub(super) fn arguments(json: &str) -> Cow<'_, str> {
    let Ok(arguments) = serde_json::from_str::<Map<String, Value>>(json) else { return Cow::Borrowed(json) };
    let mut text = String::from("{");
    for (index, (key, value)) in arguments.iter().enumerate() {
        let _ = write!(text, "{}{key}:{value}", if index > 0 { ", " } else { "" });
    }
    text.push_str("}\n");
    Cow::Owned(text)
}

/// One tool: OpenAI's (with or without the `function` around it), Anthropic's (`input_schema`), Bedrock's (`toolSpec`),
/// or Gemini's (a list of `functionDeclarations`).
fn definition(tool: &Value, text: &mut String) {
    for list in ["functionDeclarations", "function_declarations"] {
        if let Some(Value::Array(tools)) = tool.get(list) {
            return tools.iter().for_each(|tool| definition(tool, text));
        }
    }
    let tool = ["function", "toolSpec"].iter().find_map(|key| tool.get(key)).unwrap_or(tool);
    let Some(Value::String(name)) = tool.get("name") else {
        // A provider's own tool, such as a web search: nobody knows what it becomes.
        text.push_str(&tool.to_string());
        text.push('\n');
        return;
    };
    describe(tool, 0, text);
    let schema = ["parameters", "input_schema", "inputSchema"].iter().find_map(|key| tool.get(key));
    let schema = schema.map(|schema| schema.get("json").unwrap_or(schema));
    match schema.and_then(|schema| Some((schema, properties(schema)?))) {
        Some((schema, properties)) => {
            let _ = writeln!(text, "type {name} = (_: {{");
            members(schema, properties, 0, text);
            text.push_str("}) => any;\n\n");
        }
        None => {
            let _ = write!(text, "type {name} = () => any;\n\n");
        }
    }
}

fn properties(schema: &Value) -> Option<&Map<String, Value>> {
    schema.get("properties")?.as_object().filter(|properties| !properties.is_empty())
}

fn describe(value: &Value, indent: usize, text: &mut String) {
    if let Some(Value::String(description)) = value.get("description") {
        let _ = writeln!(text, "{:indent$}// {description}", "");
    }
}

/// Deeper than this nothing is indented further.
const MAX_INDENT: usize = 16;

fn members(schema: &Value, properties: &Map<String, Value>, indent: usize, text: &mut String) {
    let required = schema.get("required").and_then(Value::as_array);
    for (name, property) in properties {
        describe(property, indent, text);
        let needed = required.is_some_and(|required| required.iter().any(|other| other == name));
        let _ = write!(text, "{:indent$}{name}{}: ", "", if needed { "" } else { "?" });
        kind(property, indent, text);
        text.push(',');
        if let Some(default) = property.get("default") {
            let _ = write!(text, " // default: {default}");
        }
        text.push('\n');
    }
}

/// The type of a schema.
fn kind(schema: &Value, indent: usize, text: &mut String) {
    if let Some(Value::Array(values)) = schema.get("enum") {
        return either(values, text, |value, text| {
            let _ = write!(text, "{value}");
        });
    }
    if let Some(value) = schema.get("const") {
        let _ = write!(text, "{value}");
        return;
    }
    if let Some(Value::Array(schemas)) = ["anyOf", "oneOf"].iter().find_map(|key| schema.get(key)) {
        return either(schemas, text, |schema, text| kind(schema, indent, text));
    }
    match schema.get("type") {
        Some(Value::Array(names)) => either(names, text, |name, text| named(name, schema, indent, text)),
        Some(name) => named(name, schema, indent, text),
        None if schema.get("properties").is_some() => object(schema, indent, text),
        None => text.push_str("any"),
    }
}

fn either(values: &[Value], text: &mut String, mut each: impl FnMut(&Value, &mut String)) {
    for (index, value) in values.iter().enumerate() {
        if index > 0 {
            text.push_str(" | ");
        }
        each(value, text);
    }
}

fn named(name: &Value, schema: &Value, indent: usize, text: &mut String) {
    match name.as_str().unwrap_or_default().to_ascii_lowercase().as_str() {
        "string" => text.push_str("string"),
        "number" | "integer" => text.push_str("number"),
        "boolean" => text.push_str("boolean"),
        "null" => text.push_str("null"),
        "object" => object(schema, indent, text),
        "array" => {
            match schema.get("items") {
                Some(items) => kind(items, indent, text),
                None => text.push_str("any"),
            }
            text.push_str("[]");
        }
        _ => text.push_str("any"),
    }
}

fn object(schema: &Value, indent: usize, text: &mut String) {
    let Some(properties) = properties(schema) else { return text.push_str("object") };
    text.push_str("{\n");
    members(schema, properties, (indent + 2).min(MAX_INDENT), text);
    let _ = write!(text, "{:indent$}}}", "");
}
