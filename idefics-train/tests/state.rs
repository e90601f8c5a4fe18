//! The folder of a run: which checkpoints are kept, replaced and found again.

use std::path::Path;

use burn::tensor::Device;
use idefics_train::Trainer;

use crate::training::{config, model, resume, run, run_config, weights};

/// Returns the sorted names in a folder.
fn names(folder: &Path) -> Vec<String> {
    let names = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

#[test]
fn run_in_the_folder_of_a_longer_run_keeps_its_own_checkpoints() {
    let folder = tempfile::tempdir().unwrap();
    for step in ["step-00000400", "step-00000500"] {
        std::fs::create_dir(folder.path().join(step)).unwrap();
    }
    std::fs::write(folder.path().join("latest"), "step-00000500").unwrap();
    let mut trainer = Trainer::new(model("small"), run_config(6)).unwrap();
    for step in 0..3 {
        run(&mut trainer, step..step + 1);
        assert!(trainer.save(folder.path()).unwrap().is_dir());
        assert_eq!(resume(folder.path()).unwrap().unwrap().steps_done(), u64::from(step) + 1);
    }
    let kept = ["latest", "step-00000002", "step-00000003", "step-00000400", "step-00000500"];
    assert_eq!(names(folder.path()), kept);
}

#[test]
fn checkpoints_are_ordered_by_number() {
    let folder = tempfile::tempdir().unwrap();
    let mut trainer = Trainer::new(model("small"), run_config(6)).unwrap();
    run(&mut trainer, 0..1);
    let first = trainer.save(folder.path()).unwrap();
    // Makes the checkpoint look like that of a late step.
    let state = std::fs::read_to_string(first.join("state.json")).unwrap();
    std::fs::write(first.join("state.json"), state.replace("\"step\": 1,", "\"step\": 99999999,")).unwrap();
    std::fs::rename(&first, folder.path().join("step-99999999")).unwrap();
    std::fs::write(folder.path().join("latest"), "step-99999999").unwrap();
    // These folders are the remains of interrupted saves.
    for step in ["step-00000007.tmp", "step-00000008.old", "step-99999998"] {
        std::fs::create_dir(folder.path().join(step)).unwrap();
    }
    let mut trainer = resume(folder.path()).unwrap().unwrap();
    assert_eq!(trainer.steps_done(), 99_999_999);
    run(&mut trainer, 1..2);
    trainer.save(folder.path()).unwrap();
    assert_eq!(names(folder.path()), ["latest", "step-100000000", "step-99999999"]);
}

#[test]
fn interrupted_replacement_of_the_latest_checkpoint_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut trainer = Trainer::new(model("small"), run_config(6)).unwrap();
    run(&mut trainer, 0..1);
    let saved = trainer.save(folder.path()).unwrap();
    trainer.save(folder.path()).unwrap(); // replaces the first save
    assert_eq!(names(folder.path()), ["latest", "step-00000001"]);

    // This is the state if the process is killed between the two renames of a third save.
    std::fs::rename(&saved, folder.path().join("step-00000001.old")).unwrap();
    std::fs::create_dir(folder.path().join("step-00000001.tmp")).unwrap();
    let resumed = resume(folder.path()).unwrap().unwrap();
    assert_eq!((resumed.steps_done(), weights(resumed.module())), (1, weights(trainer.module())));
    resumed.save(folder.path()).unwrap();
    assert_eq!(names(folder.path()), ["latest", "step-00000001"]);
    assert_eq!(resume(folder.path()).unwrap().unwrap().steps_done(), 1);

    // Both checkpoints exist if the process is killed before the old one is removed.
    std::fs::create_dir(folder.path().join("step-00000001.old")).unwrap();
    assert_eq!(resume(folder.path()).unwrap().unwrap().steps_done(), 1);
    run(&mut trainer, 1..2);
    trainer.save(folder.path()).unwrap();
    assert_eq!(names(folder.path()), ["latest", "step-00000001", "step-00000002"]);
}

#[test]
fn missing_latest_checkpoint_is_an_error_that_names_it() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("latest"), "step-00000003").unwrap();
    let fresh = idefics_generate::Idefics2::new(&config("small"), &Device::flex().autodiff()).unwrap();
    let error = Trainer::resume(fresh, run_config(6), folder.path(), &Device::flex()).unwrap_err();
    assert!(error.to_string().contains("step-00000003"), "{error}");
}
