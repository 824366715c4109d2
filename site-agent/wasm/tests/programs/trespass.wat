;; Tries to open a file, in the folder and by the path that stand in the place of FOLDER and PATH; FLAGS says whether it is made.
;; Ends well if that is not let it.
(module
  (import "wasi_snapshot_preview1" "path_open"
    (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "PATH")
  (func (export "_start")
    (if (i32.eqz (call $open (i32.const FOLDER) (i32.const 0) (i32.const 0) (i32.const LENGTH) (i32.const FLAGS)
        (i64.const RIGHTS) (i64.const 0) (i32.const 0) (i32.const 1024)))
      (then (call $exit (i32.const 1))))))
