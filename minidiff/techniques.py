"""The techniques by name: where each one is, and where its proof is. Only addresses: to list them imports nothing.

A technique is a function (pipe, image, ..., *, seed, progress) -> pictures, with the argument names `image`, `source` (the
prompt that describes the picture), `target` or `prompt` (what is wanted) and `mask`; its options become those of
`minidiff edit NAME`. A proof is a function (pipe, n, seed) -> rows, run by `minidiff prove NAME`.
"""
EDITS = {"sdedit": "minidiff.editing.sdedit:sdedit",
         "prompt-to-prompt": "minidiff.editing.prompt_to_prompt:prompt_to_prompt",
         "inpaint": "minidiff.editing.inpaint:inpaint",
         "instruct-pix2pix": "minidiff.editing.instruct_pix2pix:instruct_pix2pix",
         "asyrp": "minidiff.editing.asyrp:asyrp",
         "boundary": "minidiff.editing.boundary_diffusion:boundary",
         "zecon": "minidiff.editing.zecon:zecon",
         "anagram": "minidiff.samplers.visual_anagrams:anagram",
         "null-text": "minidiff.inversion.null_text:null_text",
         "negative-prompt": "minidiff.inversion.direct:negative_prompt",
         "direct-inversion": "minidiff.inversion.direct:direct_inversion",
         "edict": "minidiff.inversion.edict:edict",
         "edit-friendly": "minidiff.inversion.edit_friendly:edit_friendly",
         "ddib": "minidiff.editing.ddib:ddib",
         "diffusion-clip": "minidiff.editing.diffusion_clip:diffusion_clip",
         "imagic": "minidiff.editing.imagic:imagic",
         "unitune": "minidiff.editing.unitune:unitune",
         "pivotal-tuning": "minidiff.inversion.pivotal_tuning:pivotal_tuning"}

PROOFS = {"ddim-inversion": "minidiff.evaluate.proofs.ddim_inversion:prove",
          "sdedit": "minidiff.evaluate.proofs.sdedit:prove",
          "prompt-to-prompt": "minidiff.evaluate.proofs.prompt_to_prompt:prove",
          "asyrp": "minidiff.evaluate.proofs.asyrp:prove",
          "boundary": "minidiff.evaluate.proofs.boundary_diffusion:prove",
          "zecon": "minidiff.evaluate.proofs.zecon:prove",
          "anagram": "minidiff.evaluate.proofs.visual_anagrams:prove",
          "null-text": "minidiff.evaluate.proofs.null_text:prove",
          "direct-inversion": "minidiff.evaluate.proofs.direct:prove",
          "edict": "minidiff.evaluate.proofs.edict:prove",
          "edit-friendly": "minidiff.evaluate.proofs.edit_friendly:prove",
          "ddib": "minidiff.evaluate.proofs.ddib:prove",
          "diffusion-clip": "minidiff.evaluate.proofs.diffusion_clip:prove",
          "imagic": "minidiff.evaluate.proofs.imagic:prove",
          "unitune": "minidiff.evaluate.proofs.unitune:prove",
          "pivotal-tuning": "minidiff.evaluate.proofs.pivotal_tuning:prove"}
