//! Every input that fuzzing has kept, through the check it was kept for.

use std::{fs, path::Path};

use daffi_test_bytes::CHECKS;

/// What adds to the coverage, and what has once made a check fail.
const KEPT: [&str; 2] = ["corpus", "found"];

#[test]
fn what_fuzzing_has_kept_does_no_harm() {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz");
    for (name, check) in CHECKS {
        let mut inputs = 0;
        for kept in KEPT {
            let Ok(files) = fs::read_dir(fuzz.join(kept).join(name)) else { continue };
            for file in files {
                let path = file.expect("the folder can be read").path();
                // Seen only when the check panics.
                println!("{}", path.display());
                check(&fs::read(&path).expect("the file can be read"));
                inputs += 1;
            }
        }
        assert!(inputs > 0, "nothing is kept for {name}");
    }
}
