# Read the profile of a recipe, and print or run its commands.  Source it after
# parse_options.sh.
#
#   recipe_commands KIND [OPTIONS]  print the commands of the chosen systems, with their
#                                   folders: icefall_kd/bin/recipe_commands.py
#   run_commands KIND [OPTIONS]     run these commands one after the other; if
#                                   dry_run=true, only print them
#
# Reads conf/profiles.yaml in the current folder, which is the recipe's.  Sets profile,
# variants, systems, exp and head if they are empty.  Also sets the values of the
# profile: labelled, unlabelled, pseudo_labelled, pseudo_suffix, dev_set, test_sets,
# check_sets and profile_jobs.

recipe_commands() {
  python -m icefall_kd.bin.recipe_commands "$1" --profile "$profile" \
    --variants "${variants:-}" --systems "${systems:-}" --exp "${exp:-}" \
    --head "${head:-}" "${@:2}"
}

run_commands() {
  local lines command status=0
  lines=$(recipe_commands "$@") || status=$?
  if ((status != 0)) && [[ ${dry_run:-false} != true ]]; then
    return "$status"
  fi
  while IFS=$'\t' read -r -u 3 _ _ command; do
    if [[ ${dry_run:-false} == true ]]; then
      printf '%s\n' "$command"
    else
      eval "$command"
    fi
  done 3<<<"$lines"
  return "$status"
}

_recipe_profile=$(recipe_commands profile)
eval "$_recipe_profile"
