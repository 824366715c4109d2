//! Values from and to JSON and text, quantities, ids and sets of elements.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use atoll_model::elements::ElementSet;
use atoll_model::id::{AgentId, ExecutionId, ObjectId, RunId, SiteName, StepIndex};
use atoll_model::units::{format_duration, format_size, parse_cpu, parse_duration, parse_size};
use atoll_model::value::{DirectoryRef, FileName, FileRef, Type, Value, from_json, from_output, from_text};
use expect_test::{Expect, expect};
use proptest::prelude::*;
use serde_json::json;

fn list_of(element: Type) -> Type {
    Type::List(Some(Box::new(element)))
}

#[track_caller]
fn check_json(json: serde_json::Value, r#type: &Type, expected: Expect) {
    let text = match from_json(&json, r#type) {
        Ok(value) => format!("{value:?}"),
        Err(mismatch) => mismatch.to_string(),
    };
    expected.assert_eq(&text);
}

#[test]
fn json_is_read_with_the_type_as_the_guide() {
    check_json(json!(1), &Type::Number, expect!["Number(1.0)"]);
    check_json(json!(2.0), &Type::Integer, expect!["Integer(2)"]);
    check_json(json!(2.5), &Type::Integer, expect!["expected an integer, found the number 2.5"]);
    check_json(json!("2"), &Type::Integer, expect![[r#"expected an integer, found the text "2""#]]);
    check_json(json!(2), &Type::String, expect!["expected a string, found the number 2"]);
    check_json(json!(null), &Type::String, expect!["expected a string, found null"]);
    check_json(
        json!([1, [2, "x"]]),
        &list_of(Type::Any),
        expect![[r#"List([Integer(1), List([Integer(2), String("x")])])"#]],
    );
    check_json(
        json!([[1], ["x"]]),
        &list_of(list_of(Type::Integer)),
        expect![[r#"at [1][0]: expected an integer, found the text "x""#]],
    );
    check_json(
        json!("c"),
        &Type::Enum(vec!["a".into(), "b".into()]),
        expect![[r#"expected one of a, b, found the text "c""#]],
    );
    check_json(json!({"a": 1}), &Type::Object, expect![[r#"Object({"a": Integer(1)})"#]]);
    check_json(json!({"a": 1}), &Type::File, expect!["expected a file, found an object"]);
    check_json(json!("x.csv"), &Type::File, expect![[r#"expected a file, found the text "x.csv""#]]);
}

#[test]
fn files_and_directories_survive_json() {
    let name = FileName::new("a b.csv".as_bytes()).expect("valid");
    let file = Value::File(FileRef {
        object: ObjectId::from_digest([7; 32]),
        bytes: 12,
        name: name.clone(),
        executable: false,
    });
    let program = FileRef { object: ObjectId::from_digest([9; 32]), bytes: 3, name: name.clone(), executable: true };
    let program = Value::File(program);
    let tree = DirectoryRef { object: ObjectId::from_digest([8; 32]), bytes: 99, files: 3, name, listing: None };
    let tree = Value::Directory(tree);
    assert_eq!(from_json(&file.to_json(), &Type::File), Ok(file.clone()));
    assert_eq!(from_json(&program.to_json(), &Type::Any), Ok(program.clone()));
    assert_eq!(program.to_json()["executable"], true);
    assert!(file.to_json().get("executable").is_none());
    assert_eq!(from_json(&tree.to_json(), &Type::Directory), Ok(tree.clone()));
    let list = Value::list(vec![file.clone(), tree]);
    assert_eq!(from_json(&list.to_json(), &Type::Any), Ok(list));
    assert!(from_json(&file.to_json(), &Type::Directory).is_err());
}

#[test]
fn a_process_sees_values_as_the_contract_says() {
    let name = FileName::new(b"x").expect("valid");
    let file = Value::File(FileRef { object: ObjectId::from_digest([7; 32]), bytes: 12, name, executable: false });
    let text = |value: &Value| value.to_text_with(&|_| "/in/a \"b\"".to_owned());
    assert_eq!(text(&Value::string("a\n\"b\" $c")), "a\n\"b\" $c");
    assert_eq!(text(&Value::Integer(-3)), "-3");
    assert_eq!(text(&Value::Number(2.5)), "2.5");
    assert_eq!(text(&Value::Number(3.0)), "3");
    assert_eq!(text(&Value::Number(1e-7)), "0.0000001");
    assert_eq!(text(&Value::Boolean(true)), "true");
    assert_eq!(text(&Value::Null), "");
    assert_eq!(text(&Value::list(vec![Value::Integer(5), Value::string("x"), Value::Number(1.5)])), "[5,\"x\",1.5]");
    assert_eq!(text(&file), "/in/a \"b\"");
    assert_eq!(text(&Value::list(vec![file])), "[\"/in/a \\\"b\\\"\"]");
}

#[test]
fn an_output_is_read_with_its_trailing_newline_dropped() {
    assert_eq!(from_output(b"5\n", &Type::Integer), Ok(Value::Integer(5)));
    assert_eq!(from_output(b" 5 \r\n", &Type::Integer), Ok(Value::Integer(5)));
    assert_eq!(from_output(b"a\n\n", &Type::String), Ok(Value::string("a\n")));
    assert_eq!(from_output(b"", &Type::String), Ok(Value::string("")));
    assert_eq!(
        from_output(b"[1, 2]\n", &list_of(Type::Integer)),
        Ok(Value::list(vec![Value::Integer(1), Value::Integer(2)]))
    );
    assert_eq!(from_output(b"3\n", &Type::Number), Ok(Value::Number(3.0)));
    assert_eq!(from_output(b"true\n", &Type::Boolean), Ok(Value::Boolean(true)));
    let message = |bytes: &[u8], r#type: &Type| from_output(bytes, r#type).expect_err("refused").to_string();
    expect![[r#"
        expected an integer, found "five"
        expected an integer, found ""
        expected a number, found "inf"
        expected a boolean (true or false), found "yes"
        expected a string, found bytes that are not UTF-8
        expected a list, found text that is not JSON (EOF while parsing a value at line 1 column 3)
        at [1]: expected an integer, found the text "x"
        expected a list, found an object
        expected an integer, found "99999999999999999999""#]]
    .assert_eq(
        &[
            message(b"five\n", &Type::Integer),
            message(b"", &Type::Integer),
            message(b"inf", &Type::Number),
            message(b"yes", &Type::Boolean),
            message(b"\xff", &Type::String),
            message(b"[1,", &Type::List(None)),
            message(b"[1, \"x\"]", &list_of(Type::Integer)),
            message(b"{}", &Type::List(None)),
            message(b"99999999999999999999", &Type::Integer),
        ]
        .join("\n"),
    );
}

#[test]
fn values_take_their_declared_type() {
    assert_eq!(Value::Integer(2).conform(&Type::Number), Ok(Value::Number(2.0)));
    let list = Value::list(vec![Value::Integer(1), Value::Null]);
    assert_eq!(list.clone().conform(&list_of(Type::Number)), Ok(Value::list(vec![Value::Number(1.0), Value::Null])));
    let Value::List(before) = &list else { panic!("a list") };
    let Ok(Value::List(after)) = list.clone().conform(&list_of(Type::Integer)) else { panic!("a list") };
    assert!(Arc::ptr_eq(before, &after), "what fits is not copied");
    let error = Value::list(vec![Value::Integer(1), Value::string("x")]).conform(&list_of(Type::Integer));
    assert_eq!(error.expect_err("refused").to_string(), "at [1]: expected an integer, found the text \"x\"");
    assert_eq!(Value::Null.conform(&Type::File), Ok(Value::Null));
}

#[test]
fn quantities_are_read_as_people_write_them() {
    let duration = |text: &str| parse_duration(text).map(|duration| duration.as_millis()).ok();
    assert_eq!(
        [
            "250ms",
            "5s",
            "1h30m",
            "1.5h",
            "2d",
            "0",
            "1m 5s",
            "5",
            "",
            "m",
            "5x",
            "30m1h",
            "1e3s",
            "-5s",
            "9999999999999999999999d"
        ]
        .map(duration),
        [
            Some(250),
            Some(5_000),
            Some(5_400_000),
            Some(5_400_000),
            Some(172_800_000),
            Some(0),
            None,
            None,
            None,
            None,
            None,
            None,
            None,
            None,
            None
        ]
    );
    let size = |text: &str| parse_size(text).ok();
    assert_eq!(
        ["512MiB", "10GB", "100", "1.5KiB", "3k", "1 GiB", "5B", "1.5", "-1", "5 apples", "", "99999999PiB"].map(size),
        [
            Some(512 << 20),
            Some(10_000_000_000),
            Some(100),
            Some(1_536),
            Some(3_000),
            Some(1 << 30),
            Some(5),
            None,
            None,
            None,
            None,
            None
        ]
    );
    let cpu = |text: &str| parse_cpu(text).ok();
    assert_eq!(
        ["2", "0.5", "500m", "0", "0.0001", "x", "2c", "1e9"].map(cpu),
        [Some(2_000), Some(500), Some(500), None, None, None, None, None]
    );
    assert_eq!([0, 1_023, 1_024, 1_536, 5 << 30].map(format_size), ["0 B", "1023 B", "1 KiB", "1.5 KiB", "5 GiB"]);
    assert_eq!(
        parse_size("many").expect_err("refused").to_string(),
        "`many` is not a size: write `512MiB`, `10GB` or a number of bytes"
    );
}

proptest! {
    #[test]
    fn a_duration_is_read_back(micros in 0u64..1 << 50) {
        let duration = Duration::from_micros(micros);
        let back = parse_duration(&format_duration(duration)).expect("its own format");
        prop_assert!(back.abs_diff(duration) < Duration::from_micros(2), "{back:?} {duration:?}");
    }

    #[test]
    fn quantities_never_panic(text in "\\PC{0,20}|[0-9.]{1,20}[a-zA-Z]{0,4}") {
        let _ = (parse_duration(&text), parse_size(&text), parse_cpu(&text));
    }

    #[test]
    fn bytes_are_read_back(bytes in 0u64..1 << 62) {
        prop_assert_eq!(parse_size(&bytes.to_string()), Ok(bytes));
    }

    #[test]
    fn ids_are_read_back_and_sort_as_they_print(one in any::<u128>(), other in any::<u128>(), step in any::<u16>(), element in any::<u32>()) {
        let (left, right) = (RunId::from_bits(one), RunId::from_bits(other));
        prop_assert_eq!(left.to_string().parse(), Ok(left));
        prop_assert_eq!(left.cmp(&right), left.to_string().cmp(&right.to_string()));
        prop_assert!(left.to_string().parse::<AgentId>().is_err());
        let execution = ExecutionId { run: left, step: StepIndex(step), element };
        prop_assert_eq!(execution.to_string().parse(), Ok(execution));
    }

    #[test]
    fn object_ids_are_read_back(digest in any::<[u8; 32]>()) {
        let id = ObjectId::from_digest(digest);
        prop_assert_eq!(id.to_string().parse(), Ok(id));
    }

    #[test]
    fn text_that_is_no_id_is_refused(text in "\\PC{0,40}|(run|exec|b3)[_:][0-9a-z+-]{0,70}") {
        if let Ok(run) = text.parse::<RunId>() {
            prop_assert_eq!(run.to_string(), text.clone());
        }
        if let Ok(object) = text.parse::<ObjectId>() {
            prop_assert_eq!(object.to_string().to_lowercase(), text.to_lowercase());
        }
        if let Ok(site) = text.parse::<SiteName>() {
            prop_assert_eq!(site.as_str(), text.as_str());
        }
        let _ = text.parse::<ExecutionId>();
    }

    #[test]
    fn a_set_of_elements_is_a_set(operations in prop::collection::vec((0u8..6, 0u32..64, 0u32..24), 0..60)) {
        let mut set = ElementSet::new();
        let mut model = BTreeSet::new();
        for (operation, start, length) in operations {
            let range = start..start + length;
            match operation {
                0 => prop_assert_eq!(set.insert(start), model.insert(start)),
                1 => prop_assert_eq!(set.remove(start), model.remove(&start)),
                2 => {
                    set.insert_range(range.clone());
                    model.extend(range);
                }
                3 => {
                    set.remove_range(range.clone());
                    model.retain(|element| !range.contains(element));
                }
                4 => {
                    let taken: Vec<u32> = set.take_first(length).iter().collect();
                    let expected: Vec<u32> = model.iter().copied().take(length as usize).collect();
                    model.retain(|element| !expected.contains(element));
                    prop_assert_eq!(taken, expected);
                }
                _ => {
                    let other: ElementSet = range.clone().step_by(3).collect();
                    set.remove_all(&other);
                    set.insert_all(&ElementSet::from_range(start..start + length / 2));
                    model.retain(|element| !range.clone().step_by(3).any(|removed| removed == *element));
                    model.extend(start..start + length / 2);
                }
            }
            prop_assert_eq!(set.iter().collect::<Vec<_>>(), model.iter().copied().collect::<Vec<_>>());
            prop_assert_eq!(set.len() as usize, model.len());
            prop_assert_eq!(set.first(), model.first().copied());
            prop_assert!((0..100).all(|element| set.contains(element) == model.contains(&element)));
            let ranges: Vec<_> = set.ranges().collect();
            prop_assert!(ranges.iter().all(|range| !range.is_empty()));
            prop_assert!(ranges.windows(2).all(|pair| pair[0].end < pair[1].start), "sorted, disjoint, not adjacent");
        }
    }

    #[test]
    fn the_text_of_a_value_is_read_back(integer in any::<i64>(), number in -1e12f64..1e12, text in "\\PC{0,30}", truth in any::<bool>()) {
        let nothing = |_: &Value| String::new();
        for (value, r#type) in [
            (Value::Integer(integer), Type::Integer),
            (Value::Number(number), Type::Number),
            (Value::string(&text), Type::String),
            (Value::Boolean(truth), Type::Boolean),
            (Value::list(vec![Value::Integer(integer), Value::string(&text)]), Type::List(None)),
        ] {
            prop_assert_eq!(from_text(&value.to_text_with(&nothing), &r#type), Ok(value));
        }
    }
}
